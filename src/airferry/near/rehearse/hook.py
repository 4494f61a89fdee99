"""Watch a step from inside its container: who tries to reach outside, from which line, and how the step ends.

This file is copied into the container's Python path as `sitecustomize.py`, where every interpreter loads it at start,
and is run as a program around the step, to end it when its time is up. It runs on whatever Python the base has, 3.6 or
newer (audit hooks need 3.8), so it imports nothing but what the smallest standard libraries hold. It changes nothing
that the step does. Each record is one line, a Python literal in ASCII, appended to the log in one write.
"""

import os
import sys

LOG = "AIRFERRY_REHEARSAL_LOG"
CONFIG = "AIRFERRY_REHEARSAL_CONFIG"
ROOT = "AIRFERRY_REHEARSAL_ROOT"
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")
MAX_RECORDS = 2000
MAX_TEXT = 600
MAX_FRAMES = 60
MAX_CAUSES = 6
TAIL_BYTES = 32768
TERMINATE_GRACE_S = 5.0
DRAIN_S = 2.0
LOCAL_NAMES = ("", "localhost", "0.0.0.0", "::", "::1", "<broadcast>", "broadcasthost")
NAME_EVENTS = {"socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.gethostbyaddr": 0}
PEER_EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1}
FAMILIES = (2, 10)  # AF_INET, AF_INET6
START_EVENTS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn")


def text(value, limit=MAX_TEXT):
    """Return any value as bounded text; whatever it does when asked for it."""
    try:
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        return str(value)[:limit]
    except Exception:
        return "?"


def is_local(host):
    """Tell whether a name or address is this container itself."""
    host = text(host).lower().rstrip(".")
    own = os.uname()[1].lower()
    return host in LOCAL_NAMES or host == own or host.startswith(("127.", "::ffff:127.")) or host.endswith(".localhost")


class Watch:
    """One interpreter's audit hook."""

    def __init__(self, log):
        from _thread import _local  # `threading` itself would be loaded earlier than the step expects

        self.log = log
        self.config = os.environ.get(CONFIG, "")
        self.root = os.environ.get(ROOT, "")
        self.here = os.path.dirname(os.path.abspath(__file__))
        self.library = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
        self.state = _local()
        self.seen = set()
        self.config_seen = False

    def write(self, record):
        """Append a record, once for each distinct one, and not without end."""
        record["pid"] = os.getpid()
        line = ascii(record) + "\n"
        if line in self.seen or len(self.seen) >= MAX_RECORDS:
            return
        self.seen.add(line)
        try:
            handle = os.open(self.log, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(handle, line.encode("ascii"))
            finally:
                os.close(handle)
        except OSError:
            pass

    def __call__(self, event, args):
        """Look at one audit event. Nothing that goes wrong here may reach the step."""
        if event == "open":
            if self.config_seen or not self.config or not isinstance(args[0], (str, bytes)):
                return
        elif not (event in NAME_EVENTS or event in PEER_EVENTS or event in START_EVENTS or event == "sys.excepthook"):
            return
        if getattr(self.state, "busy", False):
            return
        self.state.busy = True
        try:
            self.look(event, args)
        except Exception:
            pass
        finally:
            self.state.busy = False

    def look(self, event, args):
        """Write down what an event means, if it means something."""
        if event == "open":
            name = os.fsdecode(args[0])
            if os.path.basename(name) == os.path.basename(self.config) and os.path.realpath(name) == self.config:
                self.config_seen = True
                self.write({"event": "config"})
        elif event in NAME_EVENTS:
            host = args[0]
            port = args[1] if event == "socket.getaddrinfo" else None
            if host is not None and not is_local(host):
                self.attempt(event, text(host), port)
        elif event in PEER_EVENTS:
            peer = args[1]
            if args[0].family not in FAMILIES:
                return
            if isinstance(peer, tuple) and len(peer) >= 2 and not is_local(peer[0]):
                self.attempt(event, text(peer[0]), peer[1])
        elif event == "sys.excepthook":
            self.write({"event": "exception", "causes": causes(args[2]), "frames": traceback(args[3])})
        else:
            record = {"event": "start", "how": event, "argv": command(event, args), "place": self.place()}
            record["program"] = text(args[1] if event == "os.spawn" else args[0])
            self.write(record)

    def attempt(self, event, host, port):
        """Write down that somebody wants to reach a host."""
        try:
            port = int(port) if port is not None else None
        except (TypeError, ValueError):
            port = {"http": 80, "https": 443, "ssh": 22, "ftp": 21}.get(text(port))
        self.write({"event": "attempt", "how": event, "host": host, "port": port or None, "place": self.place()})

    def place(self):
        """Return the step's own line that led here, and the library's line nearest to it."""
        step = near = inner = None
        frame = sys._getframe(1)
        for _ in range(MAX_FRAMES):
            if frame is None or (step and near):
                break
            name = frame.f_code.co_filename
            spot = [text(name), frame.f_lineno, text(frame.f_globals.get("__name__", ""))]
            if not name.startswith("<") and not name.startswith(self.here):
                inner = inner or spot
                if self.root and name.startswith(self.root):
                    step = step or spot
                elif not name.startswith(self.library) or "-packages" in name:
                    near = near or spot
            elif name in ("<string>", "<stdin>"):
                inner = inner or spot
            frame = frame.f_back  # type: ignore[assignment]
        return {"step": step, "library": near or inner}


def own_command():
    """Return this interpreter's command line."""
    try:
        with open("/proc/self/cmdline", "rb") as stream:
            return text(stream.read(MAX_TEXT).rstrip(b"\0").replace(b"\0", b" "))
    except OSError:
        return "python"


def command(event, args):
    """Return the command line of a child that is about to start."""
    if event == "os.system":
        return ["sh", "-c", text(args[0])]
    words = args[2] if event == "os.spawn" else args[0] if event == "pty.spawn" else args[1]
    if isinstance(words, (str, bytes)):
        return [text(words)]
    return [text(word, 200) for word in list(words)[:20]]


def causes(error):
    """Return the facts about an exception and its causes, the outermost first.

    Of each: type, message, path, error number, the nearest folder of the path that is there, whether it was named as
    the cause of the one before it or only came first, and the exit code of a child.
    """
    found = []  # type: list[list[object]]
    link = ""
    while error is not None and len(found) < MAX_CAUSES:
        kind = type(error)
        path = getattr(error, "filename", None)
        number = getattr(error, "errno", None)
        code = getattr(error, "returncode", None)
        known = [kind.__module__ + "." + kind.__name__, text(error), text(path) if path else ""]
        known += [number if isinstance(number, int) else 0, nearest(path) if path else "", link]
        found.append([*known, code if isinstance(code, int) else 0])
        link = "cause" if error.__cause__ is not None else "context"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def nearest(path):
    """Return a path, or the nearest folder above it that is there."""
    try:
        name = os.path.abspath(os.fsdecode(path))
        while not os.path.lexists(name):
            name = os.path.dirname(name)
        return text(name)
    except Exception:
        return ""


def traceback(entry):
    """Return file, line and function of each frame of a traceback, the innermost last."""
    found = []  # type: list[list[object]]
    while entry is not None:
        code = entry.tb_frame.f_code
        found.append([text(code.co_filename), entry.tb_lineno, text(code.co_name, 100)])
        entry = entry.tb_next
    return found[-MAX_FRAMES:]


def chain():
    """Load the `sitecustomize` that the image has itself, as if this one were not there."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    own = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        if getattr(error, "name", "sitecustomize") != "sitecustomize":
            raise
        if own is not None:
            sys.modules["sitecustomize"] = own


def install():
    """Hook this interpreter, if it is part of a rehearsal, and let the image's own start-up code run."""
    for name in PROXIES:
        for spelling in (name, name.upper()):
            os.environ.pop(spelling, None)
    log = os.environ.get(LOG, "")
    if log and hasattr(sys, "addaudithook"):
        watch = Watch(log)
        watch.write({"event": "python", "command": own_command()})
        sys.addaudithook(watch)
    chain()


# --- the program around the step -------------------------------------------------------------------------------------


def run(limit_s, argv):
    """Run the step for at most a time, pass nothing on, and write down how it ended and what it said last."""
    import select
    import signal
    import time

    for name in PROXIES:
        for spelling in (name, name.upper()):
            os.environ.pop(spelling, None)
    read_end, write_end = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(write_end, 1)
            os.dup2(write_end, 2)
            os.execvp(argv[0], argv)
        except OSError as error:
            os.write(2, ("%s: %s\n" % (argv[0], error.strerror)).encode("utf-8", "replace"))
        finally:
            os._exit(127)
    os.close(write_end)
    tail, status, limited, signalled = b"", None, False, 0.0
    deadline = started + limit_s
    while True:
        now = time.monotonic()
        if status is None and now >= deadline:
            number = signal.SIGKILL if limited else signal.SIGTERM
            limited, deadline = True, now + TERMINATE_GRACE_S
            signal_all(pid, number)
        if select.select([read_end], [], [], 0.05)[0]:
            block = os.read(read_end, 65536)
            tail = (tail + block)[-TAIL_BYTES:]
            if not block and status is not None:
                break
            if not block:
                time.sleep(0.05)
        if status is None:
            ended, found = os.waitpid(pid, os.WNOHANG)
            if ended:
                status = found
                signalled = time.monotonic()
                signal_all(pid, signal.SIGTERM)
        elif time.monotonic() - signalled > DRAIN_S:
            signal_all(pid, signal.SIGKILL)
            break
    record = {
        "event": "end",
        "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "limited": limited,
        "elapsed_s": round(time.monotonic() - started, 3),
        "output": tail.decode("utf-8", "replace"),
        "step_pid": pid,
    }
    with open(os.environ[LOG], "a", encoding="utf-8") as stream:
        stream.write(ascii(record) + "\n")


def signal_all(session, number):
    """Signal a whole session's process group; it may be gone."""
    try:
        os.killpg(session, number)
    except OSError:
        pass


if __name__ == "__main__":
    run(float(sys.argv[1]), sys.argv[2:])
elif __name__ == "sitecustomize":
    install()
