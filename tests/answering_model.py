"""A real tiny model that gives one answer to every prompt, such as a judge whose answers can be read."""

from pathlib import Path


def make_answering(folder: Path, text: str) -> Path:
    """Change the saved model in `folder` so that it answers every prompt with `text` and ends its turn.

    Its layers add nothing, so that each token depends on the one before it alone: a token outside the text is followed
    by the first one of the text, each one of the text by the next, and the last by the end of the turn. No token may
    occur twice in the text.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    chain = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len({*chain}) == len(chain) < model.config.hidden_size
    axes = torch.eye(model.config.hidden_size)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                value.zero_()
        inputs, outputs = model.get_input_embeddings().weight, torch.zeros_like(model.get_output_embeddings().weight)
        inputs[:] = axes[0]
        outputs[chain[0]] = axes[0]
        for number, (token, after) in enumerate(zip(chain, [*chain[1:], tokenizer.eos_token_id], strict=True), 1):
            inputs[token] = axes[number]
            outputs[after] = axes[number]
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(outputs)
    model.save_pretrained(folder)
    return folder
