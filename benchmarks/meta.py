"""Forecasts of models that no machine here could hold: python benchmarks/meta.py [name ...]

Each model is built on the meta device and predicted from the laws of its initialisers, in a process of its own.
Printed are seconds, peak memory, parameters, results without a law, the logits' standard deviation, and the smallest
and largest gradient.
`twin` is a small model that is also built for real: forecasts from the laws beside measurements over three seeds.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig

import tightrope as tr
from tightrope.tape.initialisers import remember

MODELS = {
    "llama-70b": (LlamaConfig, {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 128256,
    }),
    "gpt-3": (GPT2Config, {"n_layer": 96, "n_embd": 12288, "n_head": 96, "n_positions": 2048}),
}  # fmt: skip
TWIN = {
    "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 1000,
}  # fmt: skip


def batch(vocabulary: int, length: int) -> dict[str, object]:
    ids = torch.randint(vocabulary, (4, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids, "use_cache": False}


def on_meta(config: PretrainedConfig) -> torch.nn.Module:
    with remember(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def judge(name: str) -> None:
    """Build and predict one large model."""
    kind, options = MODELS[name]
    begin = time.perf_counter()
    model = on_meta(kind(**options))
    built, busy = time.perf_counter(), time.process_time()
    forecast = tr.predict(model, batch(model.config.vocab_size, 256))
    done, spent = time.perf_counter(), time.process_time() - busy
    tape = forecast.tape
    results = [n for e in tape.entries for n in e.outputs if tape.values[n].is_float]
    logits = next(e for e in reversed(tape.entries) if e.op == "linear").outputs[0]
    gradients = [law.rms for number, law in forecast.gradients.items() if law.rms > 0]
    print(f"{name}: {sum(p.numel() for p in model.parameters()) / 1e9:.1f} billion parameters")
    print(
        f"  build {built - begin:.1f} s, predict {done - built:.1f} s ({spent:.1f} s of processor time), "
        f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    )
    print(
        f"  {len(results)} results, {sum(n in forecast.laws for n in results)} with a law, "
        f"{len(forecast.simulated)} of them simulated, {len(forecast.unknown)} unknown"
    )
    if logits in forecast.laws:
        print(f"  logits std {forecast.laws[logits].std:.4g}, loss {forecast.laws[tape.loss].mean:.4g}")
    if gradients:
        print(f"  gradient rms {min(gradients):.3g} to {max(gradients):.3g}")


def twin(seeds: int = 3) -> None:
    """A small Llama from the laws of its weights against real ones."""
    config = LlamaConfig(**TWIN)
    data = batch(config.vocab_size, 64)
    forecast = tr.predict(on_meta(config), data)
    rows: dict[int, list[tuple[float, float]]] = {}
    gradients: dict[int, list[float]] = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        measured = tr.measure(AutoModelForCausalLM.from_config(config), data)
        for index, row in enumerate(tr.compare(forecast, measured).rows):
            if row.trivial:
                continue
            if row.predicted_std and row.measured_std:
                rows.setdefault(index, []).append((row.predicted_std, row.measured_std))
            if row.predicted_grad_rms and row.measured_grad_rms:
                gradients.setdefault(index, []).append(row.predicted_grad_rms / row.measured_grad_rms)
    errors = [abs(pairs[0][0] / math.sqrt(np.mean([m**2 for _, m in pairs])) - 1) for pairs in rows.values()]
    back = [abs(math.exp(np.mean(np.log(ratios))) - 1) for ratios in gradients.values()]
    for label, found in (("forward std", errors), ("gradient rms", back)):
        print(
            f"twin, {label}: median {100 * np.median(found):.2f} %, p90 {100 * np.quantile(found, 0.9):.2f} %, "
            f"max {100 * max(found):.1f} % over {len(found)} results and {seeds} seeds"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*MODELS, "twin"])
    names = parser.parse_args().names
    for name in names:
        if len(names) > 1:
            subprocess.run([sys.executable, __file__, name], check=True)
        elif name == "twin":
            twin()
        else:
            judge(name)


if __name__ == "__main__":
    main()
