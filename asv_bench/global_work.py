"""Work in Python for `global_bench.py`: each prints a line of JSON with the cost of each round but the first.

python global_work.py rounds ROUNDS      vectors of 1 to 256 MiB in NumPy, over two threads
python global_work.py galois ROUNDS      products of two polynomials of 2^20 coefficients by NTT
"""

import json
import random
import resource
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

MIB = 1 << 20


def rounds() -> Callable[[], object]:
    """Each thread makes vectors of nine sizes in an order of that round, computes with them, has at most three."""

    def work(number: int) -> None:
        order = random.Random(number)
        sizes = [1 << power for power in range(9)]
        order.shuffle(sizes)
        kept: list[np.ndarray] = []
        for size in sizes:
            vector = np.full(size * MIB // 8, float(size))
            kept.append(vector + 1.0)
            del vector, kept[:-2]
            assert kept[-1][0] == kept[-1][-1] == size + 1.0

    count = iter(range(1 << 30))

    def one_round() -> None:
        number = 2 * next(count)
        threads = [threading.Thread(target=work, args=(number + n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return one_round


def galois_products() -> Callable[[], object]:
    import galois
    from galois import ntt

    modulus, degree = 2013265921, 1 << 20  # 15 * 2^27 + 1
    field = galois.GF(modulus)
    a, b = (field(np.random.default_rng(seed).integers(0, modulus, degree)) for seed in (1, 2))

    def product() -> None:
        x, y = (ntt(v, size=2 * degree, modulus=modulus) for v in (a, b))
        c = galois.intt(x * y, modulus=modulus)
        assert int(c[0]) == int(a[0]) * int(b[0]) % modulus

    return product


def main() -> None:
    """The command line."""
    work = {"rounds": rounds, "galois": galois_products}[sys.argv[1]]()
    for number in range(int(sys.argv[2])):
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        work()
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        cost = {
            "user": after.ru_utime - before.ru_utime,
            "system": after.ru_stime - before.ru_stime,
            "faults": after.ru_minflt - before.ru_minflt,
            "wall": wall,
        }
        if number:
            print(json.dumps(cost), flush=True)


if __name__ == "__main__":
    main()
