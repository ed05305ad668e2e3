"""On PYTHONPATH of a job, so in each of its Python processes: logs what they read and write, plays broken decoders.

An audit hook sees every file opened and linked, and changes nothing, or ends the process at the step it was told.
"""

import os
import signal
import sys
import time

if "SEEN_LOG" in os.environ:
    _source, _output = os.environ["SEEN_SOURCE"], os.environ["SEEN_OUTPUT"]
    _log = os.open(os.environ["SEEN_LOG"], os.O_WRONLY | os.O_APPEND)

    def _tell(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(_source):
            os.write(_log, f"read {arguments[0].removeprefix(_source)}\n".encode())
        elif event == "os.link" and isinstance(arguments[1], str) and arguments[1].startswith(_output):
            os.write(_log, f"write {arguments[1].removeprefix(_output)}\n".encode())

    sys.addaudithook(_tell)

if "STEPS_LOG" in os.environ:
    _there = os.environ["STEPS_OUTPUT"]
    _steps = os.open(os.environ["STEPS_LOG"], os.O_WRONLY | os.O_APPEND)
    _kill_at = int(os.environ.get("KILL_AT_STEP", "0"))
    _count = 0

    def _step(event: str, arguments: tuple[object, ...]) -> None:
        """Before each thing done to the output: say what, or die before it is done."""
        global _count
        if event not in ("open", "os.link", "os.rename", "os.remove", "os.mkdir"):
            return
        path = arguments[1] if event in ("os.link", "os.rename") else arguments[0]
        if not isinstance(path, str) or not f"{path}/".startswith(_there):
            return
        _count += 1
        name = path.removeprefix(_there.rstrip("/")).lstrip("/")
        os.write(_steps, f"{'kill' if _count == _kill_at else 'step'} {event} {name}\n".encode())
        if _count == _kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(_step)

if "BROKEN_DECODER" in os.environ:
    from PIL import ImageFile

    _load = ImageFile.ImageFile.load

    def _broken(self: ImageFile.ImageFile) -> object:
        """Pillow's decoder with the defect of a C library: some bytes end the process, or never come back."""
        comment = self.info.get("comment", b"")
        if comment == b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if comment == b"hang":
            time.sleep(100_000)
        return _load(self)

    ImageFile.ImageFile.load = _broken  # type: ignore[method-assign]
