"""A llama of some thousand parameters, its adapter, and an engine that says what it is told. No mocks, no weights."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType
from safetensors.numpy import save_file
from tokenizers import Tokenizer, pre_tokenizers

from punie.backends import _gguf
from punie.backends._engine import CallGrammar
from punie.backends._local import Loaded, LocalModel, Piece
from punie.backends._prefixes import Prefixes
from punie.config import EngineOptions
from punie.wire import WHOLE, Wire

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ t", "Ġt he")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HIDDEN, LAYERS, HEADS, KEY_HEADS, INNER, WINDOW = 64, 2, 4, 2, 96, 512


def vocabulary() -> list[str]:
    """Control tokens, every byte, and one token for each merge."""
    return [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]


def write_gguf(
    path: Path, *, seed: int = 0, tokenizer: str = "gpt2", template: str = TEMPLATE, heads: int = HEADS
) -> Path:
    """A random llama with a tokenizer and a chat template in its metadata. Fewer heads are wider ones."""
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(heads)
    writer.add_head_count_kv(KEY_HEADS * heads // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // heads)
    writer.add_vocab_size(len(vocabulary()))
    _write_tokenizer(writer, tokenizer, template)
    for name, values in tensors(seed).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tokenizer(writer: GGUFWriter, kind: str, template: str) -> None:
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary())
    writer.add_token_types(
        [TokenType.CONTROL] * len(SPECIALS) + [TokenType.NORMAL] * (len(vocabulary()) - len(SPECIALS))
    )
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    if template:
        writer.add_chat_template(template)


def tensors(seed: int) -> dict[str, np.ndarray]:
    """llama.cpp's names and its order of rows."""
    random = np.random.default_rng(seed)
    size, keys = HIDDEN // HEADS, HIDDEN // HEADS * KEY_HEADS
    shapes = {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (keys, HIDDEN),
        "attn_v": (keys, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (INNER, HIDDEN),
        "ffn_up": (INNER, HIDDEN),
        "ffn_down": (HIDDEN, INNER),
    }
    assert size * HEADS == HIDDEN
    made = {"token_embd.weight": random.standard_normal((len(vocabulary()), HIDDEN))}
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            made[f"blk.{layer}.{name}.weight"] = random.standard_normal(shape) * 0.2
        for name in ("attn_norm", "ffn_norm"):
            made[f"blk.{layer}.{name}.weight"] = np.ones(HIDDEN)
    made["output_norm.weight"] = np.ones(HIDDEN)
    return {name: values.astype(np.float32) for name, values in made.items()}


def write_adapter(directory: Path, *, seed: int = 0, amplitude: float = 0.2, kind: str = "lora") -> Path:
    """A random LoRA adapter of rank 2 in MLX's format, on every projection of both layers."""
    random = np.random.default_rng(seed)
    shapes = {f"self_attn.{p}_proj": (HIDDEN, HIDDEN) for p in "qo"}
    shapes |= {f"self_attn.{p}_proj": (HIDDEN, HIDDEN // HEADS * KEY_HEADS) for p in "kv"}
    factors = {}
    for layer in range(LAYERS):
        for name, (wide, out) in shapes.items():
            stem = f"model.layers.{layer}.{name}"
            factors[f"{stem}.lora_a"] = (random.standard_normal((wide, 2)) * amplitude).astype(np.float16)
            factors[f"{stem}.lora_b"] = (random.standard_normal((2, out)) * amplitude).astype(np.float16)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(factors, directory / "adapters.safetensors")
    config = {
        "fine_tune_type": kind,
        "num_layers": LAYERS,
        "lora_parameters": {"rank": 2, "scale": 2.0, "dropout": 0.0},
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def byte_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of the tiny model."""
    return _gguf.tokenizer(write_gguf(path / "tokenizer-only.gguf"))


class ScriptedEngine:
    """Says one prepared text per request, a few characters at a time, and notes what it was asked for."""

    name = "scripted"

    def __init__(self, *texts: str, context_window: int = 4096, pause_s: float = 0.0) -> None:
        self.context_window = context_window
        self.requests: list[dict[str, object]] = []
        self.threads: set[int] = set()
        self.spoken = 0
        self.closed = threading.Event()
        self.cached: tuple[int, ...] = ()
        self.saved = self.restored = 0
        self._texts = iter(texts)
        self._pause_s = pause_s

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        stop: Sequence[str],
        cancelled: threading.Event,
        grammar: CallGrammar | None = None,
        speculate: bool = False,
    ) -> Iterator[Piece]:
        asked = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stop": tuple(stop)}
        asked |= {"grammar": grammar, "speculate": speculate}
        self.cached = tuple(prompt)
        self.requests.append({"prompt": tuple(prompt), **asked})
        self.threads.add(threading.get_ident())
        text = next(self._texts, "")
        ends = [at for s in stop if (at := text.find(s)) >= 0]
        words = [text[: min(ends, default=len(text))][i : i + 4] for i in range(0, len(text), 4)]
        for word in words[:max_tokens]:
            if cancelled.wait(self._pause_s) if self._pause_s else cancelled.is_set():
                yield Piece(finish="cancelled")
                return
            self.spoken += 1
            yield Piece(word, token_count=1)
        finish = "length" if len(words) > max_tokens else "stop"
        yield Piece(
            finish=finish, prompt_tokens=len(prompt), cached_tokens=len(prompt) - 1, prefill_s=0.25, decode_s=0.5
        )

    def save(self, path: Path) -> int:
        path.write_text(json.dumps(self.cached))
        self.saved += 1
        return len(self.cached)

    def restore(self, path: Path) -> int:
        try:
            self.cached = tuple(json.loads(path.read_text()))
        except ValueError:
            return 0
        self.restored += 1
        return len(self.cached)

    def close(self) -> None:
        self.closed.set()


def scripted_model(
    tmp_path: Path,
    *texts: str,
    asked: EngineOptions | None = None,
    kept: bool = False,
    template: str = TEMPLATE,
    **more,
) -> tuple[LocalModel, ScriptedEngine]:
    """A local model on a scripted engine; `kept`: with a place on disk for its caches, as another process has too."""
    engine = ScriptedEngine(*texts, **more)
    wire = Wire(byte_tokenizer(tmp_path), template=template, view=WHOLE)
    prefixes = Prefixes(tmp_path / "prefixes", model="scripted") if kept else None
    loaded = Loaded(engine, wire, load_s=0.125, prefixes=prefixes)
    return LocalModel(lambda: loaded, name="tiny", context_window=4096, options=asked), engine


def wait_until(condition, *, seconds: float = 5.0) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())
