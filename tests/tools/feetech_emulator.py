"""Six Feetech STS3215 servos on one serial bus, on a pseudo-terminal: an SO-101 for programs that expect one.

    python tests/tools/feetech_emulator.py /tmp/so101          # a port; Ctrl-C ends it

What answers are the packets of the servos' protocol 0, byte for byte, at 1 Mbaud; what moves are six joints with a
position controller that lags, is limited in speed, hangs below its goal under gravity, falls without torque, and gets
warm. Faults are attributes: change them while somebody talks to the bus.

Source: Feetech, "Magnetic Encoding SMS/STS Memory Table" and "Communication Protocol Manual"; register addresses as in
lerobot 0.6.1, motors/feetech/tables.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PING, READ, WRITE, REG_WRITE, ACTION, SYNC_READ, SYNC_WRITE = 1, 2, 3, 4, 5, 0x82, 0x83
BROADCAST = 0xFE
RESOLUTION = 4096
MODEL_STS3215 = 777

ID, RETURN_DELAY, LOW_LIMIT, HIGH_LIMIT, MAX_TEMPERATURE, OFFSET = 5, 7, 9, 11, 13, 31
TORQUE, GOAL, LOCK, POSITION, VELOCITY, LOAD = 40, 42, 55, 56, 58, 60
VOLTAGE, TEMPERATURE, STATUS, MOVING, CURRENT = 62, 63, 65, 66, 69
EEPROM_END = 40

FAULT_VOLTAGE, FAULT_HEAT = 1, 4
MAX_SPEED = 3000.0
"""Ticks per second: 0.73 turns, which an STS3215 does under load."""
BANDWIDTH_HZ = 2.5
"""How fast the position controller closes in, with lerobot's P coefficient of 16."""
SUBSTEP_S = 0.002
MOST_SUBSTEPS = 50
"""After a pause nobody looks at the way, and an answer must not wait for it."""


@dataclass
class Servo:
    """One servo: its memory, and the joint that it turns.

    Attributes:
        number: its id on the bus.
        position: of the joint, in ticks of the encoder after the homing offset.
        sag: how far gravity keeps it from its goal [ticks].
        fall: how fast gravity turns it without torque [ticks/s].
        temperature_c: of its case.
        voltage_v: of its supply.
        silent: it does not answer.
        blocked: something is in the way: it does not move.
    """

    number: int
    position: float = 2048.0
    sag: float = 0.0
    fall: float = 0.0
    temperature_c: float = 32.0
    voltage_v: float = 12.1
    silent: bool = False
    blocked: bool = False
    memory: bytearray = field(default_factory=lambda: bytearray(256))
    pending: tuple[int, bytes] | None = None
    speed: float = 0.0

    def __post_init__(self) -> None:
        self.memory[0:2] = bytes([3, 10])
        self.put(3, MODEL_STS3215)
        self.memory[ID] = self.number
        self.put(LOW_LIMIT, 0)
        self.put(HIGH_LIMIT, RESOLUTION - 1)
        self.memory[MAX_TEMPERATURE] = 70
        self.memory[8] = 1
        self.memory[LOCK] = 1
        self.put(GOAL, round(self.position))

    def get(self, address: int) -> int:
        return int.from_bytes(self.memory[address : address + 2], "little")

    def put(self, address: int, value: int) -> None:
        self.memory[address : address + 2] = (value & 0xFFFF).to_bytes(2, "little")

    @property
    def torque(self) -> bool:
        return self.memory[TORQUE] == 1

    @property
    def offset(self) -> int:
        """Homing offset: sign and magnitude, bit 11."""
        raw = self.get(OFFSET)
        return -(raw & 0x7FF) if raw & 0x800 else raw & 0x7FF

    @property
    def faults(self) -> int:
        hot = FAULT_HEAT if self.temperature_c >= self.memory[MAX_TEMPERATURE] else 0
        weak = FAULT_VOLTAGE if not 4.0 <= self.voltage_v <= 14.0 else 0
        return hot | weak

    def advance(self, duration_s: float) -> None:
        """Turn the joint for a while."""
        steps = min(math.ceil(duration_s / SUBSTEP_S), MOST_SUBSTEPS)
        for _ in range(steps):
            self._advance(duration_s / steps)

    def _advance(self, step_s: float) -> None:
        if self.faults & FAULT_HEAT:
            self.memory[TORQUE] = 0  # it unloads itself
        if self.blocked:
            self.speed = 0.0
        elif not self.torque:
            self.speed = self.fall
        else:
            goal = min(max(self.get(GOAL) & 0x7FFF, self.get(LOW_LIMIT)), self.get(HIGH_LIMIT))
            wanted = (goal - self.sag - self.position) * 2 * math.pi * BANDWIDTH_HZ
            most = abs(wanted) / (2 * math.pi * BANDWIDTH_HZ * max(step_s, 1e-9))  # never past the goal in one step
            self.speed = min(max(wanted, -MAX_SPEED, -most), MAX_SPEED, most)
        low, high = self.get(LOW_LIMIT), self.get(HIGH_LIMIT)  # the joint's stops are near the calibrated range
        self.position = min(max(self.position + self.speed * step_s, low), high)

    def refresh(self) -> None:
        """Write what is measured into memory."""
        self.put(POSITION, round(self.position))
        self.put(VELOCITY, abs(round(self.speed)) | (0x8000 if self.speed < 0 else 0))
        load = round(min(abs((self.get(GOAL) & 0x7FFF) - self.position) * 4, 1000)) if self.torque else 0
        self.put(LOAD, load)
        self.put(CURRENT, load // 5)
        self.memory[VOLTAGE] = round(self.voltage_v * 10)
        self.memory[TEMPERATURE] = round(self.temperature_c)
        self.memory[STATUS] = self.faults
        self.memory[MOVING] = abs(self.speed) > 1

    def write(self, address: int, data: bytes) -> None:
        offset = self.offset
        self.memory[address : address + len(data)] = data
        self.position += offset - self.offset  # Present_Position = encoder - offset

    def power_cycle(self) -> None:
        """Its supply went away and came back: no torque, and a goal where it is."""
        self.memory[TORQUE] = 0
        self.memory[LOCK] = 1
        self.put(GOAL, round(self.position))


class FeetechBus:
    """Serves servos on a pseudo-terminal, from a thread of its own."""

    def __init__(self, port: Path, servos: list[Servo] | None = None) -> None:
        """
        Args:
            port: becomes a link to the pseudo-terminal, for it has another name each time.
            servos: default six of an SO-101, in the middle of their ranges.
        """
        self.port = port
        self.servos = {s.number: s for s in servos or so101_servos()}
        self.damaged_answers = 0
        """So many of the next answers get a wrong checksum; -1: all."""
        self.asked: list[int] = []
        """Instructions that came, for tests that ask what a driver did."""
        self.goals: list[dict[int, int]] = []
        """What each SYNC_WRITE of goals said: id -> goal."""
        self.now_s: Callable[[], float] = time.monotonic
        """The servos' time, for tests that have a clock of their own."""
        self._lock = threading.RLock()
        self._master = self._slave = -1
        self._thread: threading.Thread | None = None
        self._seen_s = self.now_s()
        self.plug()

    def plug(self) -> None:
        """The cable goes in."""
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        with contextlib.suppress(FileNotFoundError):
            self.port.unlink()
        self.port.symlink_to(os.ttyname(self._slave))
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="feetech", daemon=True)
        self._thread.start()

    def unplug(self) -> None:
        """The cable comes out; the servos keep their supply, and go on holding."""
        if self._thread is None:
            return
        os.write(self._woken, b"x")
        self._thread.join()
        self._thread = None
        with contextlib.suppress(FileNotFoundError):
            self.port.unlink()
        for descriptor in (self._master, self._slave, self._wake, self._woken):
            os.close(descriptor)

    close = unplug

    def positions(self) -> dict[int, float]:
        """Where the joints are now, in ticks."""
        with self._lock:
            self._advance()
            return {number: servo.position for number, servo in self.servos.items()}

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Nothing moves or is answered while tests change servos."""
        with self._lock:
            self._advance()
            yield

    def _advance(self) -> None:
        now_s = self.now_s()
        passed_s, self._seen_s = now_s - self._seen_s, now_s
        for servo in self.servos.values():
            servo.advance(passed_s)

    def _serve(self) -> None:
        buffer = bytearray()
        while True:
            ready, _, _ = select.select([self._master, self._wake], [], [])
            if self._wake in ready:
                return
            buffer += os.read(self._master, 4096)
            while (packet := _take(buffer)) is not None:
                if self._at_full_speed():
                    with self._lock:
                        self._advance()
                        answer = b"".join(self._answers(packet))
                    if answer:
                        os.write(self._master, answer)

    def _at_full_speed(self) -> bool:
        """Servos do not understand another speed than their own."""
        return termios.tcgetattr(self._slave)[5] == termios.B1000000

    def _answers(self, packet: bytes) -> Iterator[bytes]:
        number, instruction, parameters = packet[2], packet[4], packet[5:-1]
        self.asked.append(instruction)
        handlers: dict[int, Callable[[Servo, bytes], bytes | None]] = {
            PING: lambda servo, _: b"",
            READ: _read,
            WRITE: _write,
            REG_WRITE: _register,
            ACTION: _act,
        }
        if instruction == SYNC_WRITE:
            self._sync_write(parameters)
        elif instruction == SYNC_READ:
            for each in parameters[2:]:
                yield from self._answer(each, READ, parameters[:2], _read)
        elif instruction in handlers:
            numbers = list(self.servos) if number == BROADCAST else [number]
            for each in numbers:
                answers = list(self._answer(each, instruction, parameters, handlers[instruction]))
                if number != BROADCAST or instruction == PING:
                    yield from answers

    def _answer(
        self, number: int, instruction: int, parameters: bytes, handler: Callable[[Servo, bytes], bytes | None]
    ) -> Iterator[bytes]:
        servo = self.servos.get(number)
        if servo is None or servo.silent:
            return
        servo.refresh()
        data = handler(servo, parameters)
        if data is not None:
            yield self._status(servo, data)

    def _status(self, servo: Servo, data: bytes) -> bytes:
        body = bytes([servo.number, len(data) + 2, servo.faults]) + data
        check = checksum(body)
        if self.damaged_answers:
            self.damaged_answers -= self.damaged_answers > 0
            check ^= 0x55
        return b"\xff\xff" + body + bytes([check])

    def _sync_write(self, parameters: bytes) -> None:
        address, length, rows = parameters[0], parameters[1], parameters[2:]
        told: dict[int, int] = {}
        for start in range(0, len(rows), length + 1):
            number, data = rows[start], rows[start + 1 : start + 1 + length]
            told[number] = int.from_bytes(data, "little")
            if number in self.servos and not self.servos[number].silent:
                self.servos[number].write(address, data)
        if address == GOAL:
            self.goals.append(told)


def so101_servos() -> list[Servo]:
    """Shoulder pan, shoulder lift, elbow, wrist flex, wrist roll, gripper; gravity pulls on three of them."""
    pulls = {2: (6.0, 150.0), 3: (5.0, 120.0), 4: (3.0, 60.0)}
    servos = [Servo(number) for number in range(1, 7)]
    for servo in servos:
        servo.sag, servo.fall = pulls.get(servo.number, (0.0, 0.0))
    return servos


def checksum(body: bytes) -> int:
    return ~sum(body) & 0xFF


def _take(buffer: bytearray) -> bytes | None:
    """The next whole and undamaged packet; what lies before it is thrown away."""
    while len(buffer) >= 4:
        if buffer[:2] != b"\xff\xff" or buffer[2] == 0xFF:
            del buffer[0]
            continue
        end = buffer[3] + 4
        if len(buffer) < end:
            return None
        packet = bytes(buffer[:end])
        del buffer[:end]
        if checksum(packet[2:-1]) == packet[-1]:
            return packet
    return None


def _read(servo: Servo, parameters: bytes) -> bytes:
    address, length = parameters[0], parameters[1]
    return bytes(servo.memory[address : address + length])


def _write(servo: Servo, parameters: bytes) -> bytes:
    servo.write(parameters[0], parameters[1:])
    return b""


def _register(servo: Servo, parameters: bytes) -> bytes:
    servo.pending = parameters[0], parameters[1:]
    return b""


def _act(servo: Servo, _: bytes) -> bytes | None:
    if servo.pending is not None:
        servo.write(*servo.pending)
        servo.pending = None
    return b""


def obey(bus: FeetechBus, order: dict[str, Any]) -> dict[str, Any]:
    """One order of a test that runs the bus in a process of its own; the answer tells how things stand.

    {"do": "plug"}, {"do": "unplug"}
    {"bus": {"damaged_answers": 1}}
    {"servo": 3, "set": {"silent": true}, "put": {"9": 850}}
    """
    with contextlib.nullcontext() if "do" in order else bus.settled():
        if order.get("do") in ("plug", "unplug"):
            getattr(bus, order["do"])()
        for name, value in order.get("bus", {}).items():
            setattr(bus, name, value)
        if "servo" in order:
            servo = bus.servos[order["servo"]]
            for name, value in order.get("set", {}).items():
                setattr(servo, name, value)
            for address, value in order.get("put", {}).items():
                servo.put(int(address), value)
    torque = [servo.memory[TORQUE] for servo in bus.servos.values()]
    return {"positions": bus.positions(), "torque": torque, "goals": len(bus.goals), "writes": bus.asked.count(WRITE)}


def main() -> None:
    port = Path(sys.argv[1] if len(sys.argv) > 1 else "/tmp/so101")
    with contextlib.suppress(PermissionError):  # servos have a processor of their own
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    bus = FeetechBus(port)
    print(f"six STS3215 servos at {port}; Ctrl-C ends", file=sys.stderr, flush=True)
    try:
        for line in sys.stdin:
            print(json.dumps(obey(bus, json.loads(line))), flush=True)
        if sys.stdin.isatty():
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    bus.close()


if __name__ == "__main__":
    main()
