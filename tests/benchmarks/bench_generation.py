"""Speed and memory beside transformers' Idefics at the nearest size, interleaved in one run.

Both models are random, take ready patch tokens of the same scans (no vision tower runs), resample them once per call
and read the same ids. Every round times each system once, in turn, so that a busy machine slows both; the ratio of the
medians of processor time is the figure to read, wall time stands beside it. `make bench`, or with more rounds:

    python tests/benchmarks/bench_generation.py --rounds 15 --json bench.json --write README.md docs/performance.md
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

HIDDEN, LAYERS, HEADS, VOCAB, WIDTH, TOKENS, BATCH, NEW = 384, 6, 6, 8192, 256, 256, 2, 64
IMAGE_ID = VOCAB + 1  # `assemble` adds <|endofchunk|>, then <image>, then <PAD>; checked when the model is built
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
GATE = 0.5  # open gates, so that the ids depend on the scans


@dataclass(frozen=True)
class Case:
    """One measured job; `goal` is how many times faster than Idefics we want to be."""

    name: str
    kind: str  # "generate" or "train"
    scans: int
    text: int
    goal: float


CASES = (
    Case("generate, 2 scans, prompt 64", "generate", 2, 64, 1.6),
    Case("generate, 8 scans, prompt 128", "generate", 8, 128, 2.5),
    Case("training step, 2 scans, text 256", "train", 2, 256, 1.15),
)


@dataclass(frozen=True)
class Inputs:
    """`ids [batch text]` with one `<image>` at the start of each equal stretch; `tokens [batch scan token width]`."""

    ids: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, case: Case, device: str, dtype: torch.dtype) -> Inputs:
        generator = torch.Generator().manual_seed(case.scans * 1000 + case.text)
        ids = torch.randint(4, VOCAB, (BATCH, case.text), generator=generator)
        ids[:, :: case.text // case.scans] = IMAGE_ID
        tokens = torch.randn(BATCH, case.scans, TOKENS, WIDTH, generator=generator)
        return cls(ids.to(device), tokens.to(device, dtype))


class NeuroFlamingoSystem:
    """Our fused model on a random OPT (or LLaMA, which is what Idefics' own decoder is)."""

    def __init__(self, device: str, dtype: torch.dtype, family: str = "opt") -> None:
        from neuroflamingo.model.neuroflamingo import NeuroFlamingo
        from neuroflamingo.model.resampler import PerceiverResampler

        torch.manual_seed(0)
        lm = language_model(family)
        model, processor = NeuroFlamingo.assemble(
            None, lm, tokenizer_of(), cross_attn_every_n_layers=1, resampler=PerceiverResampler(dim=WIDTH)
        )
        assert processor.tokenizer.convert_tokens_to_ids("<image>") == IMAGE_ID
        for name, parameter in model.named_parameters():
            if name.endswith(("attn_gate", "ff_gate")):
                nn.init.constant_(parameter, GATE)
        self.model: Any = model.to(device, dtype).eval()

    def generate(self, inputs: Inputs, use_cache: bool = True) -> Tensor:
        out = self.model.generate(
            input_ids=inputs.ids,
            attention_mask=torch.ones_like(inputs.ids),
            scan_tokens=inputs.tokens,
            use_cache=use_cache,
            **_greedy(),
        )
        return _new_ids(out, inputs)

    def loss(self, inputs: Inputs) -> Tensor:
        mask = torch.ones_like(inputs.ids)
        return self.model(input_ids=inputs.ids, attention_mask=mask, scan_tokens=inputs.tokens, labels=inputs.ids).loss


class IdeficsSystem:
    """Idefics with the same widths: its generation reuses the resampled features, as it does after its first step."""

    def __init__(self, device: str, dtype: torch.dtype, inner: int = 1088) -> None:
        from transformers import IdeficsConfig, IdeficsForVisionText2Text

        torch.manual_seed(0)
        config = IdeficsConfig(
            vocab_size=VOCAB + 3,
            hidden_size=HIDDEN,
            intermediate_size=inner,  # of both its SwiGLU MLPs; 1088 is the multiple of 64 nearest to our size
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            alpha_initializer="ones",
            cross_layer_interval=1,
            tie_word_embeddings=True,
            use_resampler=True,
            max_position_embeddings=1024,
            vision_config={"embed_dim": WIDTH, "num_hidden_layers": 0, "num_attention_heads": 8, "image_size": 14},
            perceiver_config={
                "use_resampler": True,
                "resampler_n_latents": 64,
                "resampler_depth": 6,
                "resampler_n_heads": 8,
                "resampler_head_dim": 64,
            },
        )
        self.model: Any = IdeficsForVisionText2Text(config).to(device, dtype).eval()
        for block in self.model.model.gated_cross_attn_layers:
            nn.init.constant_(block.alpha_cross_attn, GATE)
            nn.init.constant_(block.alpha_dense, GATE)

    @staticmethod
    def _latest_scan(ids: Tensor, scans: int) -> Tensor:
        """Idefics' mask `[batch text scan]`: each text token sees the latest scan, as ours does by default."""
        seen = (ids == IMAGE_ID).cumsum(dim=1)
        return (seen[..., None] == torch.arange(1, scans + 1, device=ids.device)).long()

    def generate(self, inputs: Inputs, use_cache: bool = True) -> Tensor:
        with torch.no_grad():
            latents = self.model.model.perceiver_resampler(inputs.tokens.flatten(0, 1))
        out = self.model.generate(
            input_ids=inputs.ids,
            attention_mask=torch.ones_like(inputs.ids),
            image_hidden_states=latents.unflatten(0, inputs.tokens.shape[:2]),
            image_attention_mask=self._latest_scan(inputs.ids, inputs.tokens.shape[1]),
            use_cache=use_cache,
            **_greedy(),
        )
        return _new_ids(out, inputs)

    def loss(self, inputs: Inputs) -> Tensor:
        return self.model(
            input_ids=inputs.ids,
            attention_mask=torch.ones_like(inputs.ids),
            image_encoder_embeddings=inputs.tokens,
            image_attention_mask=self._latest_scan(inputs.ids, inputs.tokens.shape[1]),
            labels=inputs.ids,
            use_cache=False,
        ).loss


def _greedy() -> dict[str, Any]:
    return {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}


def _new_ids(ids: Tensor, inputs: Inputs) -> Tensor:
    if ids.shape[1] != inputs.ids.shape[1] + NEW:
        raise RuntimeError(f"generation stopped early: {list(ids.shape)} for prompts {list(inputs.ids.shape)}")
    return ids[:, -NEW:]


def language_model(family: str, vocabulary: int = VOCAB) -> Any:
    """A random language model of the benchmark's sizes."""
    from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

    shared: dict[str, Any] = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    shared["vocab_size"] = vocabulary
    if family == "opt":
        sizes: dict[str, Any] = {"ffn_dim": 4 * HIDDEN, "word_embed_proj_dim": HIDDEN, "max_position_embeddings": 1024}
        return OPTForCausalLM(OPTConfig(**shared, **sizes, dropout=0.0))
    sizes = {"intermediate_size": HIDDEN * 8 // 3, "max_position_embeddings": 1024, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**shared, **sizes))


def tokenizer_of(vocabulary: int = VOCAB) -> Any:
    """A tokenizer of the right size; the benchmark reads ids, never text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(vocabulary - 1)} | {"</s>": vocabulary - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="w0")


SYSTEMS: dict[str, Callable[[str, torch.dtype], Any]] = {
    "neuroflamingo": NeuroFlamingoSystem,
    "neuroflamingo (LLaMA)": lambda device, dtype: NeuroFlamingoSystem(device, dtype, "llama"),
    "idefics": IdeficsSystem,
    "idefics (MLP 1536)": lambda device, dtype: IdeficsSystem(device, dtype, 4 * HIDDEN),
}
MAIN = ("neuroflamingo", "idefics")


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The same set on both sides: the resampler and the gated blocks; the language model and its table are frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("perceiver" in name or "gated_cross_attn" in name)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def job(system: Any, case: Case, inputs: Inputs) -> Callable[[], Any]:
    """What is timed: a whole greedy generation, or a whole optimiser step."""
    if case.kind == "generate":
        return lambda: system.generate(inputs)
    optimizer = torch.optim.AdamW(trained_parameters(system.model), lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        system.loss(inputs).backward()
        optimizer.step()

    return step


def cpu_seconds() -> float:
    """Processor time of this process so far, and of the processes that it started and saw end."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@dataclass
class Times:
    """Seconds of each round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def add(self, work: Callable[[], Any], device: str) -> None:
        wall, cpu = time.perf_counter(), cpu_seconds()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        self.cpu.append(cpu_seconds() - cpu)
        self.wall.append(time.perf_counter() - wall)


def measure(case: Case, systems: dict[str, Any], device: str, dtype: torch.dtype, rounds: int) -> dict[str, Times]:
    """Interleaved rounds after one warm-up of each."""
    inputs = Inputs.of(case, device, dtype)
    jobs = {name: job(system, case, inputs) for name, system in systems.items()}
    times = {name: Times() for name in jobs}
    for work in jobs.values():
        work()
    for _ in range(rounds):
        for name, work in jobs.items():
            gc.collect()
            times[name].add(work, device)
    return times


def peak_memory_mb(name: str, case: Case, device: str, dtype: torch.dtype) -> float:
    """Peak memory of one job above what the built model takes; run in a process of its own."""
    system = SYSTEMS[name](device, dtype)
    small = Case("", "generate", 1, 8, 0)
    system.generate(Inputs.of(small, device, dtype))  # what is imported and allocated at first use is not the job's
    work = job(system, case, Inputs.of(case, device, dtype))
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = _status_kb("VmRSS")
    work()
    return (_status_kb("VmHWM") - before) / 2**10


def _status_kb(key: str) -> int:
    """VmRSS or VmHWM of this process; `ru_maxrss` would start at the peak of the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise OSError(f"no {key} in /proc/self/status")


def _memory_in_child(name: str, case: Case, arguments: argparse.Namespace) -> float | None:
    if arguments.device == "cpu" and not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, __file__, "--device", arguments.device, "--dtype", arguments.dtype]
    command += ["--memory-of", name, str(CASES.index(case))]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def check_ids(systems: dict[str, Any], device: str, dtype: torch.dtype) -> dict[str, bool]:
    """Whether cached generation gives the ids of uncached generation, for each of our systems and generating case."""
    result = {}
    for case in CASES:
        if case.kind == "generate":
            inputs = Inputs.of(case, device, dtype)
            for name in (name for name in systems if "idefics" not in name):
                system = systems[name]
                equal = torch.equal(system.generate(inputs), system.generate(inputs, use_cache=False))
                result[f"{name}: {case.name}"] = equal
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| job | system | CPU s | wall s | peak memory, MB | faster than Idefics (CPU / wall) | goal |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        memory = "-" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
        ratio = "1" if row["system"] == "idefics" else f"{row['ratio_cpu']:.2f} / {row['ratio_wall']:.2f}"
        goal = "" if "idefics" in row["system"] else f">= {row['goal']}"
        cells = (row["case"], row["system"], f"{row['cpu_s']:.3f}", f"{row['wall_s']:.3f}", memory, ratio, goal)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rows_of(case: Case, times: dict[str, Times], memory: dict[str, float | None]) -> list[dict[str, Any]]:
    reference = times["idefics"]
    rows = []
    for name, measured in times.items():
        row: dict[str, Any] = {"case": case.name, "goal": case.goal, "system": name, "rounds": asdict(measured)}
        for clock in ("cpu", "wall"):
            seconds, other = getattr(measured, clock), getattr(reference, clock)
            row[f"{clock}_s"] = statistics.median(seconds)
            row[f"ratio_{clock}"] = statistics.median(b / a for a, b in zip(seconds, other, strict=True))
        row["memory_mb"] = memory[name]
        rows.append(row)
    return rows


def write_between_marks(page: Path, text: str, mark: str = "bench") -> None:
    """Replace what stands between `<!-- bench:begin -->` and `<!-- bench:end -->`, or marks of another name."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path, help="also write the figures, every round included")
    parser.add_argument("--write", type=Path, nargs="+", default=[], help="pages to put it in, between bench marks")
    parser.add_argument(
        "--all", action="store_true", help="also ours on a LLaMA, and Idefics with MLPs as wide as ours"
    )
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    device, dtype = options.device, getattr(torch, options.dtype)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if options.memory_of:
        print(peak_memory_mb(options.memory_of[0], CASES[int(options.memory_of[1])], device, dtype))
        return 0
    names = list(SYSTEMS if options.all else MAIN)
    systems = {name: SYSTEMS[name](device, dtype) for name in names}
    sizes = {name: sum(p.numel() for p in system.model.parameters()) for name, system in systems.items()}
    rows: list[dict[str, Any]] = []
    equal = check_ids(systems, device, dtype)
    for case in CASES:
        times = measure(case, systems, device, dtype, options.rounds)
        rows += rows_of(case, times, {name: _memory_in_child(name, case, options) for name in names})
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    lines = [
        table(rows),
        "",
        f"{options.rounds} interleaved rounds, medians, 1 thread, {options.dtype} on {device}; {versions}.",
    ]
    lines += ["Parameters: " + ", ".join(f"{name} {size / 1e6:.1f} M" for name, size in sizes.items()) + "."]
    lines += [f"Cached and uncached ids {'are equal' if same else 'DIFFER'} ({what})." for what, same in equal.items()]
    print("\n".join(lines))
    for page in options.write:
        write_between_marks(page, "\n".join(lines))
    if options.json:
        record = {"rows": rows, "parameters": sizes, "ids_equal": equal, "versions": versions}
        options.json.write_text(json.dumps(record | {"device": device, "dtype": options.dtype}, indent=1))
    return 0 if all(equal.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
