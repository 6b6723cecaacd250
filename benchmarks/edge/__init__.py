"""`vla bench edge`: an exported policy beside torch, each in a process of its own: time, start, memory, size."""
