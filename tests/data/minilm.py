"""Makes minilm.json: what `transformers` gives for five sentences (mean over the tokens, length 1),
to compare ours with.

python tests/data/minilm.py FOLDER      (pip install torch transformers; FOLDER: all-MiniLM-L6-v2)
"""

import json
import sys
from pathlib import Path

SENTENCES = [
    "A good film.",
    "This is the worst movie that I have ever seen, and I have seen many!",
    "na\u00efve caf\u00e9 \u6771\u4eac \u2603",
    "x",
    "The quick brown fox jumps over the lazy dog. " * 12,
]

if __name__ == "__main__":
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    model = AutoModel.from_pretrained(sys.argv[1]).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    rows = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
    found = {
        "sentences": SENTENCES,
        "tokens": [row[row > 0].tolist() for row in batch["input_ids"]],
        "embeddings": [[round(value, 7) for value in row] for row in rows.tolist()],
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(found), encoding="utf-8")
