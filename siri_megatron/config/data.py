"""Where prompts come from: generated families, files, data sets of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from siri_megatron.config.base import Section

Preset = Literal["gsm8k", "deepscaler", "math500", "aime24", "aime25", "amc23"]
FamilyName = Literal["digit_sum", "chain_sum"]
"""The generated families (`data.families`)."""
AnswerFormat = Literal["plain", "gsm8k", "boxed"]

# Hub name, and what its rows look like. A preset with a path of one's own gives the columns alone.
HUB: dict[Preset, dict[str, str]] = {
    "gsm8k": {"path": "openai/gsm8k", "name": "main"},
    "deepscaler": {"path": "agentica-org/DeepScaleR-Preview-Dataset", "split": "train"},
    "math500": {"path": "HuggingFaceH4/MATH-500", "split": "test"},
    "aime24": {"path": "HuggingFaceH4/aime_2024", "split": "train"},
    "aime25": {"path": "math-ai/aime25", "split": "test"},
    "amc23": {"path": "math-ai/amc23", "split": "test"},
}
COLUMNS: dict[Preset, dict[str, str]] = {
    "gsm8k": {"prompt_column": "question", "answer_column": "answer", "answer_format": "gsm8k"},
    "deepscaler": {"prompt_column": "problem", "answer_column": "answer"},
    "math500": {"prompt_column": "problem", "answer_column": "answer", "id_column": "unique_id",
                "tier_column": "level"},
    "aime24": {"prompt_column": "problem", "answer_column": "answer"},
    "aime25": {"prompt_column": "problem", "answer_column": "answer"},
    "amc23": {"prompt_column": "question", "answer_column": "answer"},
}
GENERATED = get_args(FamilyName)
READ_BY = {"min_terms": GENERATED, "max_terms": GENERATED, "train_problems": (*GENERATED, "reasoning_gym"),
           "tasks": ("reasoning_gym",), "train": ("dataset",), "eval": ("dataset",)}
"""Key of `data` -> the sources that read it."""
FILES = (".jsonl", ".parquet", ".arrow")
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class DatasetConfig(Section):
    preset: Preset | None = None
    """A known data set: fills in its columns and, without a path, its name on the hub. Keys given here win."""
    path: str | None = None
    """A JSONL, Parquet or Arrow file, a directory of them, or owner/name of a data set on the Hugging Face hub."""
    name: str | None = None
    """Hub: configuration of the data set."""
    split: str | None = None
    """Hub: the split (needed); a directory: files that begin with it, or lie in a directory of this name."""
    revision: str | None = None
    """Hub: branch, tag or commit; a commit pins the content."""
    prompt_column: str | None = None
    """Column of the question: text, or a list of {role, content} messages; None: `prompt`. `a.b`: b inside of a."""
    answer_column: str | None = None
    """Column of the answer, text or a number; None: `answer`. `a.b`: b inside of a."""
    id_column: str | None = None
    """Column of a unique name; None: `id` where there is one, else file and line."""
    tier_column: str | None = None
    """Column of the difficulty class that evaluation reports apart; None: `tier` where there is one."""
    answer_format: AnswerFormat | None = None
    """plain: the text as it stands (None); gsm8k: what follows the last `####`; boxed: inside the last \\boxed{}."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, raw: Any) -> Any:
        """`data.train=train.jsonl` is short for `data.train.path=train.jsonl`."""
        return {"path": str(raw)} if isinstance(raw, (str, Path)) else raw

    @model_validator(mode="after")
    def _somewhere(self) -> DatasetConfig:
        full = self.resolved()
        if full.path is None:
            raise ValueError(f"give path (a file, a directory or owner/name on the hub) or preset, {', '.join(HUB)}")
        unread = [] if full.on_hub else [key for key in ("name", "revision") if getattr(self, key) is not None]
        if unread:
            raise ValueError(f"{unread[0]}={getattr(self, unread[0])} is never read, for {full.path} is a local path: "
                             f"leave {unread[0]} out, or give owner/name of a data set on the hub")
        if full.on_hub and full.split is None:
            raise ValueError(f"{full.path} is a data set on the hub, which has splits: add split: train, test, ...")
        return self

    def resolved(self) -> DatasetConfig:
        """With the preset filled in."""
        if self.preset is None:
            return self
        filled = COLUMNS[self.preset] | (HUB[self.preset] if self.path is None else {})
        given = {key: value for key, value in self.model_dump().items() if value is not None}
        return self.model_construct(**{**dict(self), **filled, **given, "preset": None})

    @property
    def on_hub(self) -> bool:
        """Whether `path` names a data set on the hub. A directory here is told apart by a leading `./` or `/`."""
        return bool(HUB_NAME.fullmatch(self.path or "")) and not (self.path or "").endswith(FILES)


class DataConfig(Section):
    source: Literal[FamilyName, "dataset", "reasoning_gym"] = "digit_sum"
    """A generated family (docs/method.md), data sets (files or hub names), or tasks of reasoning-gym (install it)."""
    min_terms: int = Field(3, ge=2)
    """digit_sum, chain_sum: the fewest numbers in a problem."""
    max_terms: int = Field(9, le=12)
    """digit_sum, chain_sum: the most numbers in a problem."""
    train_problems: int = Field(20000, ge=1)
    """Generated families, reasoning_gym: number of training problems (a family holds others out, by a hash)."""
    tasks: tuple[str, ...] = ()
    """reasoning_gym: names of its tasks, such as chain_sum; problems take turns."""
    train: DatasetConfig | None = None
    """dataset: training prompts. A text alone is its path."""
    eval: DatasetConfig | None = None
    """dataset: held-out prompts (keys as in data.train); needed unless evaluation.problems=0."""
    template: str | None = None
    """Prompt template with `{prompt}`; None: the text as it stands, or the chat template if `chat` is set."""
    chat: bool = False
    """Wrap each prompt as a user turn with the tokenizer's own chat template."""
    max_prompt_tokens: int = Field(64, ge=1)
    """Longest prompt, tokens."""
    overlong_prompts: Literal["refuse", "drop"] = "refuse"
    """Prompts above max_prompt_tokens: refused at start, or left out; their number and the longest are said."""
    hub_timeout_s: float = Field(600.0, gt=0)
    """Longest time that fetching one data set from the hub may take."""
    fingerprint: str = ""
    """Filled in at start from the training prompts and answers; a resume with others is refused."""

    @model_validator(mode="after")
    def _ordered(self) -> DataConfig:
        if self.min_terms > self.max_terms:
            raise ValueError(f"min_terms={self.min_terms} is above max_terms={self.max_terms}: lower min_terms")
        return self

    @model_validator(mode="after")
    def _every_key_is_read(self) -> DataConfig:
        """A key that the source makes meaningless is refused, not ignored; what it needs is there."""
        for key, sources in READ_BY.items():
            if self.source not in sources and self.altered(key):
                raise ValueError(f"{key} is never read with source={self.source}: leave {key} out, or set "
                                 f"source={sources[0]}")
        if self.source == "reasoning_gym" and not self.tasks:
            raise ValueError("source=reasoning_gym needs tasks, for example tasks: [chain_sum]")
        return self
