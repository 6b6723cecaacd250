"""The emulated servos speak the servos' language; checked against bytes of the manual and the makers' own library."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

scs = pytest.importorskip("scservo_sdk")


@pytest.fixture
def port(bus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The makers' port, which waits a second for an answer: 34 ms are not enough on a busy computer."""
    monkeypatch.setattr(scs.port_handler, "LATENCY_TIMER", 500)
    handler = scs.PortHandler(str(tmp_path / "port"))
    assert handler.openPort()
    yield handler
    handler.closePort()


@pytest.fixture
def packets() -> Any:
    return scs.PacketHandler(0)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("FF FF 01 02 01 FB", "FF FF 01 02 00 FC"),  # ping servo 1
        ("FF FF 01 04 02 03 02 F3", "FF FF 01 04 00 09 03 EE"),  # read two bytes at 3: the model, 777
        ("FF FF 02 04 03 28 01 CD", "FF FF 02 02 00 FB"),  # write 1 at 40: torque on
    ],
)
def test_packets_are_those_of_the_manual(port: Any, asked: str, answered: str) -> None:
    port.writePort(bytes.fromhex(asked))
    expected, answer = bytes.fromhex(answered), b""
    while len(answer) < len(expected):
        answer += os.read(port.ser.fileno(), len(expected))
    assert answer == expected


def test_a_damaged_question_gets_no_answer(port: Any, packets: Any) -> None:
    port.writePort(bytes.fromhex("FF FF 01 02 01 FA"))
    assert packets.ping(port, 1)[:2] == (777, scs.COMM_SUCCESS)
    assert port.getBytesAvailable() == 0


def test_a_written_goal_is_read_back_and_a_registered_one_waits_for_action(bus: Any, port: Any, packets: Any) -> None:
    packets.write2ByteTxRx(port, 1, 42, 1900)
    assert packets.read2ByteTxRx(port, 1, 42)[0] == 1900
    packets.regWriteTxRx(port, 1, 42, 2, [0x08, 0x07])
    assert packets.read2ByteTxRx(port, 1, 42)[0] == 1900
    packets.action(port, scs.BROADCAST_ID)
    assert packets.read2ByteTxRx(port, 1, 42)[0] == 1800


def test_one_question_reads_six_servos(port: Any, packets: Any) -> None:
    group = scs.GroupSyncRead(port, packets, 62, 2)
    for number in range(1, 7):
        group.addParam(number)
    assert group.txRxPacket() == scs.COMM_SUCCESS
    assert [group.getData(n, 62, 1) for n in range(1, 7)] == [121] * 6
    assert [group.getData(n, 63, 1) for n in range(1, 7)] == [32] * 6


def test_another_speed_than_theirs_is_noise_to_servos(port: Any, packets: Any) -> None:
    port.setBaudRate(115200)
    assert packets.ping(port, 1)[1] == scs.COMM_RX_TIMEOUT


def test_faults_are_answered_as_a_servo_does(bus: Any, port: Any, packets: Any) -> None:
    bus.servos[2].silent = True
    assert packets.ping(port, 2)[1] == scs.COMM_RX_TIMEOUT
    bus.servos[3].temperature_c = 71
    assert packets.read1ByteTxRx(port, 3, 63) == (71, scs.COMM_SUCCESS, 4)
    bus.damaged_answers = 1
    assert packets.read1ByteTxRx(port, 3, 63)[1] == scs.COMM_RX_CORRUPT
    assert packets.read1ByteTxRx(port, 4, 63)[:2] == (32, scs.COMM_SUCCESS)


def test_a_servo_goes_to_its_goal_only_with_torque(bus: Any, port: Any, packets: Any) -> None:
    servo = bus.servos[1]
    start = servo.position
    with bus.settled():
        servo.put(42, round(start) + 100)
        servo.advance(2.0)
        assert servo.position == start
        servo.memory[40] = 1
        servo.advance(2.0)
        assert abs(servo.position - start - 100) < 1
