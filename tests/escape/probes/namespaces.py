"""Probes that try to get a new namespace, in which they would be root, or to enter another one."""

from __future__ import annotations

from tests.escape.probe import Probe

_FLAGS = {
    "user": 0x10000000, "mount": 0x00020000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x08000000,
    "uts": 0x04000000, "cgroup": 0x02000000, "time": 0x00000080,
}  # fmt: skip


def _unshare(name: str) -> Probe:
    return Probe(
        name=f"unshare-{name}",
        group="namespaces",
        attempts=f"Leave the {name} namespace for a new one.",
        script=f"""
with attempt("unshare"):
    call("unshare", {_FLAGS[name]:#x})
    escaped("there is a new one")
stopped()
""",
    )


def _clone(name: str) -> Probe:
    return Probe(
        name=f"clone-{name}",
        group="namespaces",
        attempts=f"Start a child in a new {name} namespace.",
        script=f"""
with attempt("clone"):
    if call("clone", {_FLAGS[name] | 17:#x}, 0, 0, 0, 0) == 0:
        os._exit(0)
    escaped("the child runs")
stopped()
""",
    )


_CLONE3 = """
import struct
arguments = ctypes.create_string_buffer(struct.pack("11Q", FLAGS, 0, 0, 0, 17, *[0] * 6), 88)
with attempt("clone3"):
    if call("clone3", arguments, 88) == 0:
        os._exit(0)
    escaped("the child runs")
stopped()
"""

PROBES = (
    *(_unshare(name) for name in _FLAGS),
    *(_clone(name) for name in _FLAGS if name != "time"),
    Probe(
        name="clone3-user",
        group="namespaces",
        attempts="Start a child in a new user namespace by the call whose flags no filter can see.",
        script=_CLONE3.replace("FLAGS", hex(_FLAGS["user"])),
    ),
    Probe(
        name="clone3-time",
        group="namespaces",
        attempts="Start a child in a new time namespace, which only this call can.",
        script=_CLONE3.replace("FLAGS", hex(_FLAGS["time"])),
    ),
    Probe(
        name="high-bits-of-clone",
        group="namespaces",
        attempts="Hide the flags from a filter that compares all 64 bits of the argument.",
        script=f"""
for high in (1 << 32, 1 << 63):
    with attempt("clone"):
        flags = ctypes.c_long(high | {_FLAGS["user"] | 17:#x}).value
        if call("clone", flags, 0, 0, 0, 0) == 0:
            os._exit(0)
        escaped("the child runs")
    with attempt("unshare"):
        call("unshare", ctypes.c_long(high | {_FLAGS["uts"]:#x}).value)
        escaped("there is a new one")
stopped()
""",
    ),
    Probe(
        name="enter-those-of-1",
        group="namespaces",
        attempts="Enter the namespaces of process 1 by their files.",
        script="""
for name in ("user", "mnt", "net", "pid", "ipc", "uts", "cgroup"):
    with attempt(name):
        os.close(os.open(f"/proc/1/ns/{name}", os.O_RDONLY))
        escaped(f"opened the {name} namespace")
stopped()
""",
    ),
    Probe(
        name="enter-by-process",
        group="namespaces",
        attempts="Enter the namespaces of process 1 by a descriptor of the process.",
        script="reaches('setns', os.pidfd_open(1), 0x04000000)",
    ),
    Probe(
        name="enter-our-own",
        group="namespaces",
        attempts="Enter a namespace at all.",
        script="reaches('setns', os.open('/proc/self/ns/uts', os.O_RDONLY), 0)",
    ),
    Probe(
        name="map-users",
        group="namespaces",
        attempts="Make the own user another one by writing to the maps of users.",
        script="""
import subprocess
child = subprocess.Popen(["unshare", "--user", "sleep", "9"])
for pid in ("self", child.pid):
    for name in ("uid_map", "gid_map"):
        with attempt(name):
            for _ in range(200):
                with open(f"/proc/{pid}/{name}", "w") as file:
                    file.write("0 0 1")
                escaped(f"{name} of {pid} was written")
child.kill()
stopped()
""",
        no_control="a second map is refused by the kernel itself; see unshare-user for the first",
    ),
    Probe(
        name="allow-groups",
        group="namespaces",
        attempts="Turn on the switch that allows to drop groups.",
        script="""
with attempt("write"):
    with open("/proc/self/setgroups", "w") as file:
        file.write("allow")
    escaped("groups can be dropped")
stopped()
""",
        no_control="the kernel itself refuses it once groups are mapped",
    ),
    Probe(
        name="more-user-namespaces",
        group="namespaces",
        attempts="Raise the number of user namespaces that may be made.",
        script="""
with attempt("raise"):
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("100")
    escaped("raised to 100")
stopped()
""",
    ),
    Probe(
        name="a-program-for-it",
        group="namespaces",
        attempts="Let a program of the system make them.",
        script="""
import subprocess
said = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "id", "-u"], capture_output=True, text=True)
escaped("root of an own namespace") if said.stdout.strip() == "0" else stopped(said.stderr.strip())
""",
    ),
    Probe(
        name="a-cell-of-our-own",
        group="namespaces",
        attempts="Start bubblewrap inside the cell.",
        script="""
import subprocess
command = ["bwrap", "--unshare-all", "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib64", "/lib64",
           "--symlink", "usr/lib", "/lib", "/usr/bin/echo", "inside"]
try:
    said = subprocess.run(command, capture_output=True, text=True)
except OSError as error:
    stopped(error)
escaped("it runs") if "inside" in said.stdout else stopped(said.stderr.strip())
""",
    ),
    Probe(
        name="become-root",
        group="namespaces",
        attempts="Take on another user, group or list of groups.",
        script="""
for name, change in (("uid", lambda: os.setresuid(0, 0, 0)), ("gid", lambda: os.setresgid(0, 0, 0)),
                     ("groups", lambda: os.setgroups([0]))):
    with attempt(name):
        change()
        escaped(f"the {name} is 0")
for path in ("/tmp/mine", "/workspace/mine"):
    with attempt("chown"):
        open(path, "w").close()
        os.chown(path, 0, 0)
        escaped("gave a file to root")
stopped()
""",
        initial=True,
    ),
    Probe(
        name="take-capabilities",
        group="namespaces",
        attempts="Take capabilities: permitted, inheritable or ambient ones.",
        script="""
import struct
held = 0
for line in open("/proc/self/status"):
    if line.startswith("Cap"):
        held |= int(line.split()[1], 16)
if held:
    escaped(f"holds {held:x}")
for number in range(41):
    with attempt("ambient"):
        call("prctl", 47, 2, number, 0, 0)
        escaped(f"capability {number} is ambient")
header = struct.pack("Ii", 0x20080522, 0)
with attempt("capset"):
    call(126 if platform.machine() == "x86_64" else 91, header, struct.pack("6I", 0x200000, 0x200000, 0, 0, 0, 0))
    escaped("capset gave one")
stopped()
""",
    ),
    Probe(
        name="securebits",
        group="namespaces",
        attempts="Keep capabilities over a change of user.",
        script="reaches('prctl', 28, 0x10, 0, 0, 0)",
    ),
    Probe(
        name="host-name",
        group="namespaces",
        attempts="Change the name of the machine.",
        script="reaches('sethostname', b'mine', 4)",
    ),
    Probe(
        name="domain-name",
        group="namespaces",
        attempts="Change the name of the machine's domain.",
        script="reaches('setdomainname', b'mine', 4)",
    ),
)
