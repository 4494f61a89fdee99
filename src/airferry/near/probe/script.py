"""Answer, inside a base image, which modules can be imported there and what its Python is like.

This file is read as text and run by whatever Python the base has, 3.6 or newer, with `-c`. It must import nothing
but what the smallest standard libraries hold, must not write anything, and must survive modules that crash, hang,
print or exit: every import happens in a forked child. It prints one line, behind a mark.
"""

import os
import sys

MARK = "AIRFERRY-PROBE "
MAX_METADATA_BYTES = 1 << 20
MAX_DISTRIBUTIONS = 5000
MAX_NOTE_CHARACTERS = 300


def to_json(value):
    """Encode by hand where the base has no `json`."""
    try:
        import json
    except ImportError:
        pass
    else:
        return json.dumps(value, sort_keys=True)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join(to_json(str(k)) + ":" + to_json(v) for k, v in sorted(value.items())) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(to_json(v) for v in value) + "]"
    out = []
    for character in str(value):
        code = ord(character)
        if code > 0xFFFF:
            code -= 0x10000
            out.append("\\u%04x\\u%04x" % (0xD800 + (code >> 10), 0xDC00 + (code & 0x3FF)))
        elif character in '"\\' or code < 32 or code > 126:
            out.append("\\u%04x" % code)
        else:
            out.append(character)
    return '"' + "".join(out) + '"'


def from_json(text):
    """Decode the request, which holds only strings, numbers and lists, so that a Python literal reads the same."""
    try:
        import json
    except ImportError:
        import ast

        return ast.literal_eval(text)
    return json.loads(text)


def find_spec(name, path):
    """Ask the finders as an import would, without importing anything."""
    for finder in list(sys.meta_path):
        method = getattr(finder, "find_spec", None)
        if method is None:
            continue
        try:
            spec = method(name, path)
        except Exception:
            continue
        if spec is not None:
            return spec
    return None


def first_absent(module):
    """Return the shortest prefix of `module` that no finder finds on disk, or None."""
    path = None
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        spec = find_spec(name, path)
        if spec is None:
            return name
        path = spec.submodule_search_locations
        if path is None:
            return ".".join(parts[: count + 1]) if count < len(parts) else None
        path = list(path)
    return None


def describe(error):
    """Return one bounded line for an exception."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return (type(error).__name__ + (": " + text if text else ""))[:MAX_NOTE_CHARACTERS]


def settle(module, note):
    """Judge by what is on disk when an import ended in something other than a missing module."""
    absent = first_absent(module)
    if absent is not None:
        return {"status": "missing", "missing": absent, "note": note}
    return {"status": "present", "missing": "", "note": note}


def try_import(module):
    """Import for real and say what came of it."""
    try:
        __import__(module)
    except ModuleNotFoundError as error:
        name = error.name or ""
        if name and (module == name or module.startswith(name + ".")):
            return {"status": "missing", "missing": name, "note": ""}
        if name:
            answer = settle(module, describe(error))
            if answer["status"] == "present":
                answer.update(status="incomplete", missing=name)
            return answer
        return settle(module, describe(error))
    except BaseException as error:
        return settle(module, describe(error))
    return {"status": "present", "missing": "", "note": ""}


def child_main(modules, write_end):
    """Import one after the other in a forked child, silently, and report each as it is done."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    for module in modules:
        line = (to_json([module, try_import(module)]) + "\n").encode("ascii")
        while line:
            line = line[os.write(write_end, line) :]


class Child:
    """A forked child that imports the modules of one top-level package, so that they share what they load."""

    def __init__(self, modules, timeout_s):
        self.modules = list(modules)
        self.timeout_s = timeout_s
        self.buffer = b""
        read_end, write_end = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                os.close(read_end)
                child_main(self.modules, write_end)
            finally:
                os._exit(0)
        os.close(write_end)
        self.read_end = read_end
        self.renew()

    def renew(self):
        import time

        self.deadline_s = time.monotonic() + self.timeout_s

    def collect(self, results):
        """Read what has come; return True when the child is done with, dead or alive."""
        block = os.read(self.read_end, 1 << 16)
        self.buffer += block
        while b"\n" in self.buffer:
            line, _, self.buffer = self.buffer.partition(b"\n")
            module, answer = from_json(line.decode("ascii"))
            results[module] = answer
            self.modules.remove(module)
            self.renew()
        if block:
            return False
        status = self.reap()
        if self.modules:
            # it died in the middle: that module is there, and what comes after it gets a fresh child
            module = self.modules.pop(0)
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            note = "the interpreter was killed by signal %d" % number if number else "the interpreter exited"
            results[module] = settle(module, note + " during the import")
        return True

    def expire(self, results):
        """Kill a child whose import takes too long."""
        self.kill()
        self.reap()
        module = self.modules.pop(0)
        results[module] = settle(module, "the import did not finish within %g s" % self.timeout_s)

    def kill(self):
        import signal

        for function in (os.killpg, os.kill):
            try:
                function(self.pid, signal.SIGKILL)
            except OSError:
                pass

    def reap(self):
        os.close(self.read_end)
        status = os.waitpid(self.pid, 0)[1]
        self.kill_rest()
        return status

    def kill_rest(self):
        """End what an import may have started in its session."""
        import signal

        try:
            os.killpg(self.pid, signal.SIGKILL)
        except OSError:
            pass


def import_all(modules, timeout_s, jobs):
    """Return what a real import says of each module. Absent top-level packages cost no child."""
    import select
    import time

    results = {}
    groups = {}  # type: dict[str, list[str]]
    for module in modules:
        top = module.partition(".")[0]
        if find_spec(top, None) is None:
            results[module] = {"status": "missing", "missing": top, "note": ""}
        elif module not in groups.setdefault(top, []):
            groups[top].append(module)
    waiting = [groups[top] for top in sorted(groups)]
    running = []  # type: list[Child]
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(Child(waiting.pop(0), timeout_s))
        patience_s = max(0.0, min(child.deadline_s for child in running) - time.monotonic())
        ready = select.select([child.read_end for child in running], [], [], patience_s)[0]
        for child in list(running):
            if child.read_end in ready:
                ended = child.collect(results)
            elif time.monotonic() >= child.deadline_s and child.modules:
                child.expire(results)
                ended = True
            else:
                ended = False
            if ended:
                running.remove(child)
                if child.modules:
                    waiting.append(child.modules)
    return results


def headers(path):
    """Return name, version and requirements from a METADATA or PKG-INFO file, or None."""
    try:
        with open(path, "rb") as stream:
            text = stream.read(MAX_METADATA_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    name = version = ""
    requires = []
    for line in text.splitlines():
        if not line.strip():
            break
        key, _, value = line.partition(":")
        key = key.lower()
        if key == "name":
            name = value.strip()
        elif key == "version":
            version = value.strip()
        elif key == "requires-dist":
            requires.append(value.strip())
    return {"name": name, "version": version, "requires": requires} if name and version else None


def distributions():
    """Return what is installed; the first on the path wins, as for imports."""
    found = {}  # type: dict[str, object]
    for folder in sys.path:
        try:
            entries = sorted(os.listdir(folder or "."))
        except OSError:
            continue
        for entry in entries:
            base = os.path.join(folder, entry)
            if entry.endswith(".dist-info"):
                candidates = [os.path.join(base, "METADATA")]
            elif entry.endswith(".egg-info"):
                candidates = [os.path.join(base, "PKG-INFO"), base]
            elif entry.endswith(".egg"):
                candidates = [os.path.join(base, "EGG-INFO", "PKG-INFO")]
            else:
                continue
            for candidate in candidates:
                data = headers(candidate)
                if data is not None:
                    key = data["name"].lower().replace("_", "-").replace(".", "-")
                    if key not in found and len(found) < MAX_DISTRIBUTIONS:
                        found[key] = data
                    break
    return [found[key] for key in sorted(found)]


def musl_version():
    """Return musl's version as its own loader says it, or an empty string."""
    try:
        loaders = sorted(name for name in os.listdir("/lib") if name.startswith("ld-musl-"))
    except OSError:
        return ""
    for loader in loaders:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(write_end, 2)
                os.execv("/lib/" + loader, ["/lib/" + loader])
            finally:
                os._exit(127)
        os.close(write_end)
        text = os.read(read_end, 4096).decode("ascii", "replace")
        os.close(read_end)
        os.waitpid(pid, 0)
        for line in text.splitlines():
            if line.lower().startswith("version "):
                return line.split()[1]
    return ""


def libc():
    """Return kind and version of the C library."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        text = ""
    if text.startswith("glibc "):
        return "glibc", text.split()[1]
    version = musl_version()
    return ("musl", version) if version else ("", "")


def install_paths():
    """Return where an installer would put things."""
    try:
        import sysconfig

        return {key: sysconfig.get_path(key) or "" for key in ("purelib", "platlib", "scripts", "stdlib")}
    except Exception:
        return {"stdlib": os.path.dirname(os.__file__)}


def abi():
    """Return the ABI as wheel tags name it, and the suffix of extension modules."""
    from importlib.machinery import EXTENSION_SUFFIXES

    suffix = EXTENSION_SUFFIXES[0] if EXTENSION_SUFFIXES else ""
    flags = getattr(sys, "abiflags", "")
    try:
        import sysconfig

        if sysconfig.get_config_var("Py_GIL_DISABLED") and "t" not in flags:
            flags = "t" + flags
    except Exception:
        pass
    implementation = {"cpython": "cp", "pypy": "pp"}.get(sys.implementation.name, sys.implementation.name)
    return "%s%d%d%s" % (implementation, sys.version_info[0], sys.version_info[1], flags), suffix


def full_version(info):
    """Return a version as environment markers write it."""
    text = "%d.%d.%d" % tuple(info[:3])
    return text if info[3] == "final" else text + info[3][0] + str(info[4])


def python_facts():
    """Return what installers and markers want to know of this interpreter."""
    uname = os.uname()
    kind, version = libc()
    tag, suffix = abi()
    paths = install_paths()
    base_prefix = getattr(sys, "base_prefix", sys.prefix)
    in_venv = sys.prefix != base_prefix
    marker = os.path.join(paths.get("stdlib") or os.path.dirname(os.__file__), "EXTERNALLY-MANAGED")
    names = {"cpython": "CPython", "pypy": "PyPy"}
    return {
        "executable": sys.executable or "",
        "base_executable": getattr(sys, "_base_executable", None) or sys.executable or "",
        "implementation": sys.implementation.name,
        "version": full_version(sys.version_info),
        "prefix": sys.prefix,
        "base_prefix": base_prefix,
        "in_venv": in_venv,
        "externally_managed": not in_venv and os.path.exists(marker),
        "paths": paths,
        "libc": kind,
        "libc_version": version,
        "machine": uname[4],
        "byte_order": sys.byteorder,
        "pointer_bits": 64 if sys.maxsize > 2**32 else 32,
        "abi": tag,
        "extension_suffix": suffix,
        # the kernel's release and version are left out: they are the host's, and differ from run to run
        "markers": {
            "implementation_name": sys.implementation.name,
            "implementation_version": full_version(sys.implementation.version),
            "os_name": os.name,
            "platform_machine": uname[4],
            "platform_python_implementation": names.get(sys.implementation.name, sys.implementation.name),
            "platform_release": "",
            "platform_system": uname[0],
            "platform_version": "",
            "python_full_version": full_version(sys.version_info),
            "python_version": "%d.%d" % tuple(sys.version_info[:2]),
            "sys_platform": sys.platform,
        },
    }


def main():
    """Read the request from stdin and print the answer."""
    # with `-c` the first entry is the current folder, which no step has on its path
    sys.path[:] = [entry for entry in sys.path if entry not in ("", ".")]
    request = from_json(sys.stdin.read() or "{}")
    sys.path[:0] = request.get("path", [])
    sys.dont_write_bytecode = True
    answer = {
        "schema_version": 1,
        "modules": import_all(request.get("modules", []), request.get("timeout_s", 120), request.get("jobs", 2)),
        "python": python_facts(),
        "distributions": distributions(),
    }
    sys.stdout.write("\n" + MARK + to_json(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
