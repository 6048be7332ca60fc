"""What the programs are fed with; the benchmark of the global allocator takes it from here, too."""

import hashlib

QUERIES = """
create table big(a integer, b text, c real);
.mode csv
.import numbers.csv big
create index by_b on big(b);
create index by_c on big(c, a);
select count(*), sum(a), min(b), max(b), round(total(c), 3) from big;
select substr(b, 1, 2), count(*), sum(length(b)) from big group by 1 order by 2 desc, 1 limit 20;
select a.a, b.b from big a join big b on a.a = b.a + 1 where a.c < 0.02 order by 1, 2 limit 500;
update big set b = b || upper(b) || hex(b) where a % 3 = 0;
delete from big where a % 7 = 0;
vacuum;
select count(*), sum(length(b)), group_concat(b) from (select b from big order by b limit 4000);
pragma integrity_check;
"""


def numbers(lines: int) -> str:
    """The file that QUERIES import."""
    return "".join(
        f"{i * 7919 % 100_003},{hashlib.md5(b'%d' % i).hexdigest()[: i % 29]},{i % 997 / 997}\n" for i in range(lines)
    )


def history(commits: int) -> str:
    """For git fast-import: so many commits of changes to twenty files."""
    stream = []
    for n in range(commits):
        stream.append(f"commit refs/heads/main\ncommitter A <a@b> {1700000000 + n} +0000\ndata 7\ncommit\n")
        for name in range(n % 3, 20, 3):
            text = "".join(f"{hashlib.md5(b'%d %d' % (name, line + n // 9)).hexdigest()}\n" for line in range(120))
            stream.append(f"M 100644 inline file{name}\ndata {len(text)}\n{text}\n")
    return "".join(stream)
