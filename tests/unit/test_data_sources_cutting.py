"""Large files are cut between records only, and files grouped so that later ones change little."""

import csv
import hashlib
import io

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.sources.cutting import csv_header, cut_csv, cut_lines
from orchestrator.data.sources.files import File
from orchestrator.data.sources.grouping import group_files

FIELDS = st.text(alphabet='ab",\n\r é;', max_size=8)
TABLES = st.lists(st.lists(FIELDS, min_size=2, max_size=2), max_size=30)


def written(rows: list[list[str]], quoting: int) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=quoting, lineterminator="\n").writerows(rows)  # type: ignore[arg-type]
    return buffer.getvalue().encode()


def records(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode(), newline="")))


@given(TABLES, st.integers(1, 60), st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
def test_pieces_of_a_csv_hold_whole_records(rows: list[list[str]], chunk_bytes: int, quoting: int) -> None:
    data = written(rows, quoting)
    cuts = cut_csv(io.BytesIO(data), chunk_bytes, ",")
    pieces = [data[start:stop] for start, stop, _ in cuts]
    assert b"".join(pieces) == data
    assert [row for piece in pieces for row in records(piece)] == records(data)
    assert all(len(piece) >= chunk_bytes for piece in pieces[:-1])
    assert [digest for *_, digest in cuts] == [hashlib.sha256(piece).hexdigest() for piece in pieces]


@given(st.lists(st.binary(max_size=9).filter(lambda line: b"\n" not in line)), st.integers(1, 40))
def test_pieces_hold_whole_lines(lines: list[bytes], chunk_bytes: int) -> None:
    data = b"\n".join(lines)
    pieces = [data[start:stop] for start, stop, _ in cut_lines(io.BytesIO(data), chunk_bytes)]
    assert b"".join(pieces) == data
    assert all(piece.endswith(b"\n") and len(piece) >= chunk_bytes for piece in pieces[:-1])


@given(TABLES, TABLES, st.integers(1, 60))
def test_records_that_are_added_behind_change_the_last_piece_at_most(
    rows: list[list[str]], more: list[list[str]], chunk_bytes: int
) -> None:
    data = written(rows, csv.QUOTE_ALL)
    before = cut_csv(io.BytesIO(data), chunk_bytes, ",")
    after = cut_csv(io.BytesIO(data + written(more, csv.QUOTE_ALL)), chunk_bytes, ",")
    assert after[: max(len(before) - 1, 0)] == before[:-1]


def test_a_csv_with_quotes_inside_of_fields_is_not_cut() -> None:
    data = b'size,what\n5" pipe,a\n6,"b\nc"\n' * 3
    assert cut_csv(io.BytesIO(data), 10, ",") == []
    assert len(cut_csv(io.BytesIO(data.replace(b'5"', b"5")), 10, ",")) > 1


def test_the_header_is_the_first_record_that_is_not_blank() -> None:
    assert csv_header(io.BytesIO(b'\n\r\n"a\nb",c\n1,2\n')) == b'"a\nb",c\n'
    assert csv_header(io.BytesIO(b"a,b")) == b"a,b"
    wide = b",".join(b"column%d" % n for n in range(200_000)) + b"\n"
    assert csv_header(io.BytesIO(wide + b"1,2\n")) == wide


SIZES = st.lists(st.integers(0, 50), max_size=60)


def files(sizes: list[int], prefix: str = "b") -> list[File]:
    return [File(f"/{prefix}{n:05}", f"{prefix}{n:05}", size, 1) for n, size in enumerate(sizes)]


@given(SIZES, st.integers(1, 100))
def test_groups_hold_all_files_in_order_and_no_more_than_a_chunk(sizes: list[int], chunk_bytes: int) -> None:
    groups = group_files(files(sizes), chunk_bytes)
    assert [file for group in groups for file in group] == files(sizes)
    assert all(len(group) == 1 or sum(file.size_bytes for file in group) <= chunk_bytes for group in groups)


@given(SIZES, SIZES, st.integers(1, 100))
def test_files_behind_all_others_change_the_last_group_at_most(
    sizes: list[int], more: list[int], chunk_bytes: int
) -> None:
    before = group_files(files(sizes), chunk_bytes)
    after = group_files([*files(sizes), *files(more, "c")], chunk_bytes)
    assert after[: max(len(before) - 1, 0)] == before[:-1]


def test_files_in_between_change_few_groups() -> None:
    old = files([100] * 5000)
    groups = {tuple(group) for group in group_files(old, 10_000)}
    new = sorted([*old, File("/b00500x", "b00500x", 100, 1)], key=lambda file: file.relative)
    changed = [group for group in group_files(new, 10_000) if tuple(group) not in groups]
    assert len(groups) > 50
    assert len(changed) <= 5


def test_small_inputs_are_one_group() -> None:
    assert len(group_files(files([10] * 50), 1000)) == 1
