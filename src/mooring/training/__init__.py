"""LoRA supervised fine-tuning, on TRL and PEFT."""
