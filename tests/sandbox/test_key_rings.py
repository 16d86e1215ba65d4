"""The ring of keys of whoever started the gateway is left behind, or nothing starts; some machines have no keys."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from omni_mcp.paths import bundled

UID = 64_017  # of nobody: its quota of keys is used up for a moment
PRELUDE = f"""
import ctypes, os, platform, struct, sys
sys.path.insert(0, {str(bundled("sandbox"))!r})
import kernel, spawner
CALLS = {{"x86_64": (248, 250), "aarch64": (217, 219)}}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
def tried():
    try:
        spawner.leave_key_ring()
    except OSError as error:
        return error.strerror
    return "left"
"""
QUOTA = f"""
os.setresgid({UID}, {UID}, {UID}); os.setresuid({UID}, {UID}, {UID})
before = tried()
number = 0
while libc.syscall(CALLS[0], b"user", b"k%d" % number, b"x", 1, -3) >= 0:
    number += 1
print(before, "|", tried(), sep="")
"""
REFUSED = """
ALLOW, ERRNO, LOAD, EQUAL, RETURN = 0x7FFF0000, 0x00050000, 0x20, 0x15, 0x06
steps = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, CALLS[1]), (RETURN, 0, 0, ERRNO | NUMBER), (RETURN, 0, 0, ALLOW)]
kernel.carry_out([kernel.no_new_privileges(), kernel.filtering(b"".join(struct.pack("HBBI", *one) for one in steps))])
print(tried())
"""


def said(script: str) -> str:
    done = subprocess.run([sys.executable, "-I", "-c", PRELUDE + script], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes the quota of another user")
def test_a_ring_that_cannot_be_left_is_said() -> None:
    before, after = said(QUOTA).split("|")
    if "not implemented" in before:
        pytest.skip("this kernel has no keys")

    assert before == "left"
    assert "quota exceeded" in after


@pytest.mark.parametrize(("number", "word"), [(1, "left"), (38, "left"), (12, "Cannot allocate memory")])
def test_where_keys_are_forbidden_or_unknown_there_is_none_to_leave(number: int, word: str) -> None:
    assert word in said(REFUSED.replace("NUMBER", str(number)))
