"""Runner of benchmarks: each is a process with a time limit, whose results are saved.

`results.json` is written after every stage, so a stage that hangs or fails loses only its own
results; `results.md` has the same as tables, with machine, versions and date.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "optuna", "torch", "keras", "tensorflow", "timm")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command and its time limit."""

    name: str
    arguments: tuple[str, ...]
    """Arguments of `python`. {rows} is the path of the command's results, a JSON list of objects;
    without {rows} its output is saved."""
    seconds: float


def environment() -> dict[str, str]:
    """Returns machine, devices, versions and date. JAX runs in a process of its own, as it would
    occupy an accelerator's memory."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    code = "import jax; print(*{f'{len(jax.devices())} x {d.device_kind}' for d in jax.devices()})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    properties = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **versions,
        "devices": (done.stdout or done.stderr).strip().splitlines()[-1],
    }
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm"
        smi = ["nvidia-smi", query, "--format=csv,noheader"]
        done = subprocess.run(smi, capture_output=True, text=True)
        properties["nvidia-smi"] = done.stdout.strip()
    return properties


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def run(stages: list[Stage], out: Path) -> int:
    """Runs stages, writes out/results.json and results.md, and returns the number of failures."""
    out.mkdir(parents=True, exist_ok=True)
    results = {"environment": environment(), "stages": {}}
    print("\n".join(f"{name}: {value}" for name, value in results["environment"].items()))
    for stage in stages:
        print(f"{stage.name}: at most {stage.seconds:.0f} s ...", flush=True)
        result = results["stages"][stage.name] = _run(stage, out)
        (out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        (out / "results.md").write_text(markdown(results), encoding="utf-8")
        print(f"{stage.name}: {result['outcome']} after {result['seconds']:.0f} s", flush=True)
    print(f"written: {out / 'results.json'}, {out / 'results.md'}")
    return sum(result["outcome"] != "done" for result in results["stages"].values())


def _run(stage: Stage, out: Path) -> dict:
    rows, log = out / f"{stage.name}.json", out / f"{stage.name}.txt"
    rows.unlink(missing_ok=True)
    arguments = [argument.replace("{rows}", str(rows)) for argument in stage.arguments]
    clock = time.perf_counter()
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=file, stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[1], start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(stage.seconds)
            outcome = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped at its limit of {stage.seconds:.0f} s"
            _kill(process)
    text = log.read_text(encoding="utf-8", errors="replace")
    return {
        "command": " ".join(["python", *stage.arguments]).replace(" --rows {rows}", ""),
        "outcome": outcome,
        "seconds": round(time.perf_counter() - clock, 1),
        "rows": json.loads(rows.read_text(encoding="utf-8")) if rows.exists() else [],
        "printed": text[-4000:],
    }


def _kill(process):
    """Kills a process and its children."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, 9)
    process.kill()
    process.wait()


def write_rows(path: Path | None, rows: list[dict]) -> None:
    """Writes the results so far, if --rows names a file."""
    if path:
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def markdown(results: dict) -> str:
    """Renders results.json as a page."""
    lines = ["# Benchmarks", ""]
    lines += [f"- {name}: {value}" for name, value in results["environment"].items()]
    for name, result in results["stages"].items():
        lines += ["", f"## {name}", "", f"`{result['command']}`: {result['outcome']}, "
                  f"{result['seconds']:.0f} s", ""]  # fmt: skip
        if result["rows"]:
            columns = list(result["rows"][0])
            lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
            for row in result["rows"]:
                cells = [_cell(row.get(column)) for column in columns]
                lines.append("| " + " | ".join(cells) + " |")
        else:
            lines += ["```", *result["printed"].strip().splitlines()[-30:], "```"]
    return "\n".join(lines) + "\n"


def _cell(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
