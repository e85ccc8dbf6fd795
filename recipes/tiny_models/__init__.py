"""The recipe of the two bundled models: tokenizer, data order, training loop, evaluation and model cards. Start with README.md."""
