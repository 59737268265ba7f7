"""Write slurm/*.sh: what `siri launch slurm` renders for the shipped configs, to be read, and to be edited by hand.

    python tools/slurm_templates.py           write them
    python tools/slurm_templates.py --check   exit 1 if they are out of date
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from siri_megatron import config as configs
from siri_megatron.launch.job import Place, make_job
from siri_megatron.launch.render import sbatch_script

REPO = Path(__file__).resolve().parents[1]
PLACE = Place(Path("/path/to/siri-megatron"), "/path/to/siri-megatron/.venv/bin/python")
CONTAINER = ("launch.slurm.container_image=/path/to/siri-megatron.sqsh", "launch.python=/opt/siri/bin/python",
             "launch.slurm.mounts=[/path/to/siri-megatron:/path/to/siri-megatron, /path/to/data:/data:ro]")
TEMPLATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "single-node": ("r1-distill-1.5b", ()),
    "multi-node": ("r1-distill-7b", ("launch.interface=ib0", "launch.env={NCCL_IB_HCA: mlx5, NCCL_DEBUG: WARN}",
                                     "launch.slurm.partition=gpu", "launch.slurm.account=project")),
    "container": ("r1-distill-7b", CONTAINER),
    "array": ("r1-distill-1.5b", ("launch.slurm.sweep={seed: [1, 2, 3], budget.schedule: [cosine, constant]}",)),
    "chain": ("r1-distill-1.5b", ("launch.slurm.chain=4", "launch.slurm.time_limit=4:00:00")),
    "smallest": ("tiny", ("launch.slurm.exclusive=false", "launch.slurm.cpus_per_node=4",
                          "launch.slurm.time_limit=0:30:00")),
}


def render(name: str) -> str:
    """The template of a name; its second line says which command renders it."""
    config, overrides = TEMPLATES[name]
    script = sbatch_script(make_job(configs.load(REPO / "configs" / f"{config}.yaml", list(overrides)), PLACE))
    shebang, rest = script.split("\n", 1)
    command = shlex.join(["siri", "launch", "slurm", f"configs/{config}.yaml", *overrides, "--dry-run"])
    return f"{shebang}\n# {command}\n{rest}"


def main() -> int:
    stale = []
    for name in TEMPLATES:
        path, text = REPO / "slurm" / f"{name}.sh", render(name)
        if "--check" in sys.argv:
            stale += [] if path.exists() and path.read_text() == text else [path.name]
        else:
            path.write_text(text)
            path.chmod(0o755)
    if stale:
        print(f"out of date: {', '.join(stale)}; run python tools/slurm_templates.py", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
