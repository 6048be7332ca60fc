"""A Halo2 proof with ezkl: a small neural network, evaluated in zero knowledge. Nothing here knows of fastalloc.

    python examples/halo2.py DIRECTORY --logrows 14 --proofs 3
    fastalloc run --arena-stats -- python examples/halo2.py DIRECTORY --logrows 14 --proofs 3

The first run leaves circuit, keys and witness in the directory; later ones only prove and verify. It prints a line of
JSON for each proof (CPU seconds of user and system, page faults, resident bytes), and at the end whether all verified.
Needs the extra `halo2`. No network: the reference string is made here, so these proofs convince nobody else.
"""

import argparse
import asyncio
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDTHS = {14: 16, 16: 32}
"""Of the network's two layers, so that the circuit fills that many rows (2 to the power of)."""


def make_model(path: Path, width: int) -> None:
    """Two layers of Gemm and Relu with fixed pseudo-random weights."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    nodes, weights, name = [], [], "input"
    for layer in range(2):
        shapes = {"weight": (width, width), "bias": (width,)}
        for part, shape in shapes.items():
            values = random.uniform(-0.5, 0.5, shape).astype(np.float32)
            weights.append(numpy_helper.from_array(values, f"{part}{layer}"))
        nodes.append(helper.make_node("Gemm", [name, f"weight{layer}", f"bias{layer}"], [f"sum{layer}"]))
        nodes.append(helper.make_node("Relu", [f"sum{layer}"], [f"output{layer}"]))
        name = f"output{layer}"
    tensor = [1, width]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, tensor)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, tensor)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))
    (path.parent / "input.json").write_text(json.dumps({"input_data": [[0.1 * (i % 7) for i in range(width)]]}))


class Prover:
    """The files of one circuit in a directory, and ezkl's steps over them."""

    def __init__(self, directory: Path, logrows: int) -> None:
        os.environ["EZKL_REPO_PATH"] = str(directory)  # else it writes into the home directory
        import ezkl

        self.ezkl: Any = ezkl
        self.logrows = logrows
        self.directory = directory

    def file(self, name: str) -> str:
        """A path in the directory."""
        return str(self.directory / name)

    async def setup(self) -> None:
        """Circuit, reference string, keys and witness."""
        make_model(self.directory / "network.onnx", WIDTHS[self.logrows])
        arguments = self.ezkl.PyRunArgs()
        arguments.logrows = self.logrows
        arguments.input_scale = arguments.param_scale = 7
        files = ("network.onnx", "settings.json", "circuit.ezkl", "srs", "vk", "pk", "input.json", "witness.json")
        network, settings, circuit, srs, vk, pk, given, witness = map(self.file, files)
        await done(self.ezkl.gen_settings(network, settings, py_run_args=arguments))
        await done(self.ezkl.compile_circuit(network, circuit, settings))
        await done(self.ezkl.gen_srs(srs, self.logrows))
        await done(self.ezkl.gen_witness(given, circuit, witness))
        await done(self.ezkl.setup(circuit, vk, pk, srs))

    async def prove(self) -> None:
        """Prove, into proof.json."""
        files = ("witness.json", "circuit.ezkl", "pk", "proof.json", "srs")
        await done(self.ezkl.prove(*map(self.file, files)))

    async def verify(self) -> bool:
        """Verify proof.json."""
        return bool(await done(self.ezkl.verify(*map(self.file, ("proof.json", "settings.json", "vk", "srs")))))


async def done(result: Any) -> Any:
    """What some of ezkl's functions return, and others return a future of."""
    return await result if asyncio.isfuture(result) or asyncio.iscoroutine(result) else result


def resident_bytes() -> int:
    """In memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def measured(prove: Callable[[], Any]) -> dict[str, float]:
    """The cost of one proof."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    await prove()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "user": after.ru_utime - before.ru_utime,
        "system": after.ru_stime - before.ru_stime,
        "faults": after.ru_minflt - before.ru_minflt,
        "resident": resident_bytes(),
    }


async def run(options: argparse.Namespace) -> bool:
    """Set up if need be, then prove and verify."""
    directory = options.directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    prover = Prover(directory, options.logrows)
    if not (directory / "ready").exists():
        await prover.setup()
        (directory / "ready").touch()
    verified = True
    for _ in range(options.proofs):
        print(json.dumps(await measured(prover.prove)), flush=True)
        verified = verified and await prover.verify()
    print("verified" if verified else "NOT VERIFIED", flush=True)
    return verified


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where the circuit and its keys are; made if they are not")
    parser.add_argument(
        "--logrows", type=int, choices=sorted(WIDTHS), default=14, help="size of the circuit (default: 14)"
    )
    parser.add_argument("--proofs", type=int, default=2, help="how many; 0 sets up only (default: 2)")
    return 0 if asyncio.run(run(parser.parse_args())) else 1


if __name__ == "__main__":
    sys.exit(main())
