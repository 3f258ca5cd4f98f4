"""The tables and examples of docs/protocol.md against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from twinport_protocol.channel import ChannelClient, ChannelServer
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import (
    CHANNEL_MAGIC,
    COMMIT,
    DETACH_AFTER,
    HAVE_RECORD,
    HEADER,
    HEADER_BYTES,
    LAST,
    MAX_PIECE_BYTES,
    AckStatus,
    FrameType,
)
from twinport_protocol.messages import WORDS, Verb
from twinport_protocol.segments import EMPTY_DIGEST, MAX_SEGMENTS, Layout, digest_of, root_of
from twinport_protocol.tickets import Action, Ticket, TicketKeys

from tests.protocol.helpers import frames_of

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text()


def table(*heads: str) -> list[list[str]]:
    """The cells of the table whose header row begins with these words, without their backquotes."""
    lines = DOCUMENT.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith("| " + " | ".join(heads) + " |")]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        rows.append([cell.strip().replace("`", "") for cell in cells])
    return rows


def block(language: str) -> str:
    """The one fenced block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return str(found)


def test_every_error_code_is_there_with_its_number_and_text() -> None:
    expected = [[str(code.number), code.value, code.text] for code in ErrorCode]
    assert table("number", "code", "text") == expected


def test_the_limits_of_the_greeting() -> None:
    assert {row[0]: row[1] for row in table("key", "default", "meaning")} == Limits().to_options()


def test_every_verb_is_there_with_its_words() -> None:
    rows = table("verb", "final reply", "further errors")
    assert {row[0].split()[0] for row in rows} == {verb.value for verb in Verb}
    for form, _, errors in rows:
        verb, *words = re.sub(r"\[?[a-z-]+=\S*", "", form).split()
        least = sum(word.startswith("<") for word in words)
        most = least + sum(word.startswith("[<") for word in words)
        assert (least, most) == WORDS[Verb(verb)], form
        named = errors.split(", ") if errors else []
        assert [word for word in named if word not in {code.value for code in ErrorCode}] == []


def test_the_header_of_a_frame() -> None:
    rows = table("offset", "size", "field", "meaning")
    assert [row[2] for row in rows] == ["type", "flags", "status", "attachment", "segment", "offset", "length"]
    sizes = [int(row[1]) for row in rows]
    assert [int(row[0]) for row in rows] == [sum(sizes[:number]) for number in range(len(sizes))]
    assert sum(sizes) == HEADER_BYTES
    packed = HEADER.pack(*range(1, 8))
    for row, value in zip(rows, range(1, 8), strict=True):
        start = int(row[0])
        assert int.from_bytes(packed[start : start + int(row[1])], "big") == value


def test_frame_types_flags_and_statuses() -> None:
    frames = table("type", "name", "from")
    assert {row[1]: int(row[0]) for row in frames} == {kind.name: kind.value for kind in FrameType}
    assert {row[1]: row[2] for row in frames} == {
        kind.name: "client" if kind < FrameType.FAIL else "server" for kind in FrameType
    }
    flags = {row[1]: int(row[0]) for row in table("flag", "name")}
    assert flags == {"LAST": LAST, "COMMIT": COMMIT, "DETACH_AFTER": DETACH_AFTER}
    statuses = {row[1]: row[0] for row in table("status of an ACK", "name") if row[1]}
    assert statuses == {status.name: str(status.value) for status in AckStatus}
    assert f"records of {HAVE_RECORD.size} bytes" in DOCUMENT
    assert f"at most {MAX_PIECE_BYTES // 2**20} MiB" in DOCUMENT
    assert f"at most {MAX_SEGMENTS * 32:,} bytes" in DOCUMENT


def test_segment_sizes() -> None:
    for size, segment_bytes, count in table("file size in bytes", "segment size"):
        assert Layout.of(int(size)) == Layout(int(size), int(segment_bytes), int(count))


def test_the_root_worked_out_by_hand() -> None:
    size = 8 * 2**20 + 1
    digests = [digest_of(bytes(size - 1)), digest_of(b"\0")]
    shown = re.findall(r"^# ([0-9a-f]{64})  (\S+)$", block("sh"), re.MULTILINE)
    assert shown == [
        (digests[0].hex(), "part.aa"),
        (digests[1].hex(), "part.ab"),
        (root_of(size, b"".join(digests)).hex(), "-"),
    ]
    head = b"".join(
        bytes(int(octal, 8) for octal in line.split("\\")[1:]) for line in re.findall(r"printf '(.*)'", block("sh"))
    )
    assert head == size.to_bytes(8, "big") + Layout.of(size).segment_bytes.to_bytes(8, "big")


def test_the_digest_of_nothing() -> None:
    assert EMPTY_DIGEST.hex() in DOCUMENT


def test_the_magic() -> None:
    assert DOCUMENT.count(CHANNEL_MAGIC.hex(" ").upper()) == 2


def test_the_channel_in_hexadecimal() -> None:
    said = {"<": b"", ">": b""}
    for line in block("frames").splitlines():
        said[line[0]] += bytes.fromhex(line[1:].partition("#")[0].replace(" ", ""))
    data = b"hello\n"
    client, server = ChannelClient(Limits()), ChannelServer(Limits())
    number, attach = client.attach(b"ticket")
    put = client.put(number, 0, 0, len(data), LAST | COMMIT) + data + digest_of(data)
    assert said[">"] == client.open() + attach + put
    header = frames_of(server.feed, [said[">"]])[-1][0]
    assert said["<"] == server.acknowledge(header, AckStatus.COMMITTED)
    frames_of(client.feed, [said["<"]])
    assert client.unanswered_frames == 0


@pytest.mark.parametrize("action", Action)
def test_the_form_of_a_ticket(action: Action) -> None:
    raw = TicketKeys(b"a" * 16, {7: bytes(32)}, 7).sign(Ticket(action, "añ", b"scope", 99, 1234, 5, epoch=88))
    at = 0
    fields = {}
    for size, name in table("size", "field"):
        if size.endswith("+ n"):
            prefix = int(size.split()[0])
            count = prefix + int.from_bytes(raw[at : at + prefix], "big")
        else:
            count = int(size)
        fields[re.split("[,:;]| of ", name)[0]] = raw[at : at + count]
        at += count
    assert at == len(raw)
    numbers = {name: int.from_bytes(value, "big") for name, value in fields.items() if len(value) <= 8}
    assert numbers["version"] == 2
    assert numbers["epoch"] == 88
    assert numbers["id"] == 7
    assert numbers["action"] == action
    assert numbers["expiry"] == 1234
    assert numbers["generation"] == 5
    assert numbers["size"] == 99
    assert fields["audience"] == b"a" * 16
    assert fields["user"] == b"\x03" + "añ".encode()
    assert fields["scope"] == b"\x00\x05scope"
