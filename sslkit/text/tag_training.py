"""Training of an encoder on labeled words, with a linear layer on the first token of each."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.console import show_progress
from sslkit.contract.errors import SslkitError
from sslkit.engine.seeds import seed_stage
from sslkit.text.encoders.base import TokenEncoder
from sslkit.text.labeled_words import LabeledWords
from sslkit.text.specs import TagSpec
from sslkit.text.word_features import pad_rows, word_features, word_rows

_BATCH = 32  # rows, most of them sentences
_WARMUP, _WEIGHT_DECAY, _CLIP, _DROPOUT = 0.1, 0.01, 1.0, 0.1  # as Devlin et al., 2019, but norms decay, too


class WordClassifier:
    """A linear layer on an encoder's last states."""

    def __init__(self, encoder: TokenEncoder, classes: tuple[str, ...], size: int) -> None:
        self.encoder, self.classes, self.size = encoder, classes, size
        self.layer = nn.Linear(encoder.width, len(classes), device=encoder.device)

    def train(self, data: LabeledWords, spec: TagSpec) -> None:
        """Train encoder and layer on labeled words by AdamW, whose rate rises for a tenth of the steps and falls to zero."""
        rows = word_rows(self.encoder, data, self.size)
        labels = torch.tensor([self.classes.index(label) for _, names in data.sentences for label in names])
        starts = np.cumsum([0, *(len(row.places) for row in rows)])
        parameters = [*self.encoder.parameters(), *self.layer.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=spec.lr, weight_decay=_WEIGHT_DECAY)
        steps = spec.epochs * -(-len(rows) // _BATCH)
        warmup = max(1, round(_WARMUP * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
        )
        random = np.random.default_rng(spec.seed)
        seed_stage(spec.seed, "finetune", 0)
        self.encoder.train()
        with show_progress("fine-tuning on words", steps) as progress:
            for _ in range(spec.epochs):
                for chosen in np.split(order := random.permutation(len(rows)), range(_BATCH, len(order), _BATCH)):
                    target = torch.cat([labels[starts[place] : starts[place + 1]] for place in chosen]).to(self.encoder.device)
                    tokens, numbers, columns = pad_rows([rows[place] for place in chosen], self.encoder, self.size)
                    states = F.dropout(self.encoder.tokens(tokens)[numbers, columns], _DROPOUT)
                    optimizer.zero_grad(set_to_none=True)
                    loss = F.cross_entropy(self.layer(states), target)
                    if not torch.isfinite(loss):
                        raise SslkitError(f"{spec.lr:g} makes the loss infinite", "use a smaller one", flag="lr")
                    loss.backward()
                    nn.utils.clip_grad_norm_(parameters, _CLIP)
                    optimizer.step()
                    schedule.step()
                    progress.advance()
        self.encoder.eval()

    @torch.no_grad()
    def predict(self, data: LabeledWords) -> list[list[str]]:
        """Return the likeliest label of each word, by sentence."""

        def read(tokens: Tensor) -> dict[str, Tensor]:
            return {"scores": self.layer(self.encoder.tokens(tokens))}

        places = word_features(self.encoder, data, self.size, read)["scores"].argmax(dim=1).tolist()
        words = iter(self.classes[place] for place in places)
        return [[next(words) for _ in sentence] for sentence, _ in data.sentences]
