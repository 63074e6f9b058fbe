"""Save a trained model in the form in which the package ships it: bf16, with its chat template.

Run: python -m examples.train_bundled_model.export CHECKPOINT llma_rag/demo/model \
    --tokenizer .work/bundled/tokenizer.json

Of several checkpoints the mean of the weights is saved.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.train_bundled_model.prompts import BOS, CHAT_TEMPLATE, END, SPECIAL_TOKENS

logger = logging.getLogger(__name__)
LONGEST_CONTEXT = 4096


def export_tokenizer(source: Path, target: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json with the chat template in it."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(source),
        bos_token=BOS,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
        model_max_length=LONGEST_CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(target, save_jinja_files=False)


def export_model(sources: Sequence[Path], target: Path) -> str:
    """Write config, generation config and bf16 weights; return the hash of the weights."""
    models = [LlamaForCausalLM.from_pretrained(one, dtype=torch.float32) for one in sources]
    parts = [one.state_dict() for one in models]
    mean = {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}
    model = models[0]
    model.load_state_dict(mean)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    model.save_pretrained(target)
    return hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    """Export a checkpoint and its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("target", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.target.mkdir(parents=True, exist_ok=True)
    export_tokenizer(arguments.tokenizer, arguments.target)
    logger.info("sha256 %s", export_model(arguments.checkpoints, arguments.target))


if __name__ == "__main__":
    main()
