"""Training examples as episodes: a text, a candidate label set drawn for it, and the answer.

Four label sets teach a model those labels; many label sets teach it to read labels. So each
time a row is met, its candidates are a random subset of its own label set with labels of
other sets beside them as further negatives, and each label shows a random part of what is
known about it (its name, one synonym, everything; some examples or none). The paper's
augmentation (section 2.2, "Training Objective") replaces the right label by one of its
synonyms; that is one setting of `AugmentConfig`.

`EpisodeSampler.draw` works on whole batches of small integer arrays; `EpisodeObjective.gather`
then fetches the vectors, on the device where the model is.

Shapes: B rows, K candidates, L labels of all sets, S label sets, D the embedder's dimension,
H the encoder's width, X examples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from sce.labels import Label, LabelSet
from sce.model.background import MIN_DEVIATION, Background
from sce.model.encoder import SCEModel, pool_labels
from sce.model.label_vectors import TextVectors, TokenMeans, example_weights, mean_text_vectors
from sce.training.data import Rows
from sce.training.random_keys import row_keys, uniforms
from sce.training.settings import VIEWS, AugmentConfig

EXAMPLE_COUNTS = np.array([1, 2, 4, 8])
MOST_RIGHT = 5
"""Right labels of an episode, of a row that has more."""


@dataclass(frozen=True)
class Episodes:
    """Index arrays of one batch: places among the training rows, in the sampler's `texts_MD`, and
    in its `tokens_MH`."""

    rows_B: np.ndarray
    text_index_BK: np.ndarray
    token_index_BK: np.ndarray
    mask_BK: np.ndarray
    targets_B: np.ndarray
    """Place of the right label; -1 in rows in which any number may be right."""
    right_BK: np.ndarray
    """Which candidates are right."""
    example_rows_BKX: np.ndarray | None
    """-1 where there is no example."""


class EpisodeSampler:
    """Draws episodes for rows; every draw is a function of (seed, epoch, row id).

    Args:
        rows: the N training rows.
        label_sets: every label set that a row names; their labels are also the foreign labels.
        text_vectors: the text embedder's vectors for label texts.
        token_means: equation 2 for names and synonyms, or None.
        version: of the model's label vectors.
    """

    def __init__(
        self,
        rows: Rows,
        label_sets: dict[str, LabelSet],
        text_vectors: TextVectors,
        token_means: TokenMeans | None,
        config: AugmentConfig,
        seed: int,
        version: int,
    ) -> None:
        self.config = config
        self.seed = seed
        self.queries_ND = rows.vectors_ND
        self.keys_N = row_keys(rows.ids)
        used = sorted(set(rows.sets))
        sizes_S = np.array([len(label_sets[s]) for s in used])
        starts_S = np.concatenate([[0], np.cumsum(sizes_S)])
        place_of = {s: i for i, s in enumerate(used)}
        labels = [label for s in used for label in label_sets[s].labels]
        self.set_of_L = np.repeat(np.arange(len(used)), sizes_S)
        self.row_set_N = np.array([place_of[s] for s in rows.sets])
        self.several_N = rows.several
        in_set = [[label_sets[s].index(n) for n in rows.right(i)] for i, s in enumerate(rows.sets)]
        most = max(1, *map(len, in_set))
        self.row_labels_NP = np.array([one + [-1] * (most - len(one)) for one in in_set])
        has_NP = self.row_labels_NP >= 0
        self.row_labels_NP += np.where(has_NP, starts_S[self.row_set_N][:, None], 0)
        slots_K = np.arange(sizes_S.max())
        self.own_labels_SK = np.where(slots_K < sizes_S[:, None], starts_S[:-1, None] + slots_K, -1)

        # What stands for a label by its view: each name and each synonym once, then every label
        # with all that is said of it, and with its name and description. A synonym stands as it
        # is: in templates too, the texts to embed would be three times as many.
        keys = list(dict.fromkeys(label.key for label in labels))
        synonyms = list(dict.fromkeys(text for label in labels for text in label.synonyms))
        bare = [Label(text) for text in (*keys, *synonyms)]
        short = [replace(label, synonyms=()) for label in labels]
        vectors = [
            mean_text_vectors(bare[: len(keys)], text_vectors, version),
            *([text_vectors(synonyms)] if synonyms else []),
            mean_text_vectors([*labels, *short], text_vectors, version),
        ]
        self.texts_MD = np.concatenate(vectors).astype(np.float32)
        every = [*bare, *labels, *short]
        self.example_weights_M2 = example_weights(every, version) if version else None
        self._all_offset = len(bare)
        self._short_offset = self._all_offset + len(labels)
        of_key = {key: i for i, key in enumerate(keys)}
        of_synonym = {text: len(keys) + i for i, text in enumerate(synonyms)}
        names = [[of_key[lb.key], *(of_synonym[t] for t in lb.synonyms)] for lb in labels]
        self.name_count_L = np.array([len(n) for n in names])
        width = int(self.name_count_L.max())
        self.names_LP = np.array([n + [n[0]] * (width - len(n)) for n in names])
        means_LD = self.texts_MD[self._all_offset : self._short_offset]
        unit_LD = means_LD / np.maximum(np.linalg.norm(means_LD, axis=1, keepdims=True), 1e-12)
        self._similarity_LL = (unit_LD @ unit_LD.T).astype(np.float32)
        self.tokens_MH = None
        if token_means is not None:  # of names and synonyms: the views of more have no h_k
            self.tokens_MH = token_means([*keys, *synonyms])

        # Rows of each label, for examples: the rows sorted by label, and each row's places there.
        row_M, right_M = np.nonzero(has_NP)
        label_M = self.row_labels_NP[row_M, right_M]
        order_M = np.lexsort((self.keys_N[row_M], label_M))
        self._rows_by_label_M = row_M[order_M]
        self._label_count_L = np.bincount(label_M, minlength=len(labels))
        self._label_start_L = np.concatenate([[0], np.cumsum(self._label_count_L)[:-1]])
        self._place_NP = np.zeros_like(self.row_labels_NP)
        self._place_NP[row_M[order_M], right_M[order_M]] = np.arange(len(order_M))

    def draw(self, epoch: int, rows_B: np.ndarray) -> Episodes:
        """Episodes of the given rows (indices into the training rows) in an epoch."""
        labels_BK, right_BK = self._candidates(epoch, rows_B)
        text_BK, token_BK = self._views(epoch, rows_B, labels_BK, right_BK)
        examples_BKX = self._examples(epoch, rows_B, labels_BK, right_BK)
        targets_B = np.where(self.several_N[rows_B], -1, right_BK.argmax(1))
        mask_BK = labels_BK >= 0
        return Episodes(rows_B, text_BK, token_BK, mask_BK, targets_B, right_BK, examples_BKX)

    def _uniforms(self, epoch: int, stream: str, rows_B: np.ndarray, count: int = 1) -> np.ndarray:
        return uniforms(self.seed, epoch, stream, self.keys_N[rows_B], count)

    def _candidates(self, epoch: int, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Candidate labels, -1 for padding, and which of them are right, [B, K] both."""
        config = self.config
        own_BK = self.own_labels_SK[self.row_set_N[rows_B]]
        right_BP = self.row_labels_NP[rows_B]
        right_BK = _among(own_BK, right_BP)
        sizes_B = (own_BK >= 0).sum(1)
        u_B6 = self._uniforms(epoch, "size", rows_B, 4)
        room = config.max_candidates
        most_B = np.minimum(sizes_B, room)
        subset_B = u_B6[:, 0] < config.subset_probability
        least_B = np.minimum(2, most_B)
        drawn_B = least_B + (u_B6[:, 1] * (most_B - least_B + 1)).astype(np.int64)
        own_count_B = np.where(subset_B, drawn_B, most_B)

        # A random order of the row's own labels, the right one first and padding last; those whose
        # rank in it is below the number drawn are kept, at their old places.
        order_BK = self._uniforms(epoch, "own", rows_B, own_BK.shape[1])
        order_BK = np.where(right_BK, order_BK - 2.0, order_BK)
        if self.several_N[rows_B].any():
            # Of several right ones, or of none, some are left away: to the end of the order.
            most_right_B = np.minimum(right_BK.sum(1), MOST_RIGHT)
            u_B1 = self._uniforms(epoch, "right", rows_B)
            drawn_right_B = (u_B1[:, 0] * (most_right_B + 1)).astype(np.int64)
            kept_right_B = np.where(subset_B, drawn_right_B, most_right_B)
            kept_right_B = np.maximum(kept_right_B, least_B - (sizes_B - right_BK.sum(1)))
            away_BK = right_BK & (order_BK.argsort(1).argsort(1) >= kept_right_B[:, None])
            away_BK &= self.several_N[rows_B][:, None]
            order_BK = np.where(away_BK, order_BK + 4.0, order_BK)
            own_count_B = np.minimum(own_count_B, sizes_B - away_BK.sum(1))
        order_BK = np.where(own_BK < 0, 9.0, order_BK)
        rank_BK = order_BK.argsort(1).argsort(1)
        own_BK = np.where(rank_BK < own_count_B[:, None], own_BK, -1)

        foreign_B = u_B6[:, 2] < config.foreign_probability
        foreign_count_B = np.where(
            foreign_B, np.ceil(u_B6[:, 3] * (room - own_count_B)).astype(np.int64), 0
        )
        widest = int(foreign_count_B.max(initial=0))
        labels = len(self.set_of_L)
        # Drawn among all labels; what is of the row's own set, too like the right label or drawn
        # before is left out, so that a row may get fewer than it was to have.
        drawn_BF = (self._uniforms(epoch, "foreign", rows_B, widest) * labels).astype(np.int64)
        keep_BF = np.arange(widest) < foreign_count_B[:, None]
        keep_BF &= self.set_of_L[drawn_BF] != self.row_set_N[rows_B][:, None]
        for right_B in right_BP.T:  # one, as a rule
            similar_BF = self._similarity_LL[right_B[:, None], drawn_BF]
            keep_BF &= (similar_BF < config.foreign_similarity_limit) | (right_B < 0)[:, None]
        sorted_BF = np.sort(drawn_BF, axis=1)
        # The comparison of all pairs takes F^2 a row: only where a batch has a double at all.
        if widest > 1 and (sorted_BF[:, 1:] == sorted_BF[:, :-1]).any():
            first_BFF = drawn_BF[:, :, None] == drawn_BF[:, None, :]
            keep_BF &= ~np.tril(first_BFF, -1).any(2)
        both_BK = np.concatenate([own_BK, np.where(keep_BF, drawn_BF, -1)], axis=1)

        # Close the gaps: kept labels first, in their order, cut to the widest row.
        front_BK = np.argsort(both_BK < 0, axis=1, kind="stable")
        widest = int((both_BK >= 0).sum(1).max())
        labels_BK = np.take_along_axis(both_BK, front_BK, axis=1)[:, :widest]
        return labels_BK, _among(labels_BK, right_BP)

    def _views(
        self, epoch: int, rows_B: np.ndarray, labels_BK: np.ndarray, right_BK: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which text vector and which token mean stand for each candidate, int64 [B, K]."""
        weights = np.array([self.config.view_weights.get(v, 0.0) for v in VIEWS])
        thresholds = np.cumsum(weights / weights.sum())
        view_B = (self._uniforms(epoch, "view", rows_B) >= thresholds).sum(1).clip(max=3)
        safe_BK = labels_BK.clip(min=0)
        pick_BK = self._uniforms(epoch, "synonym", rows_B, labels_BK.shape[1])
        pick_BK = (pick_BK * self.name_count_L[safe_BK]).astype(np.int64)
        if self.config.synonym_scope == "right":
            pick_BK = np.where(right_BK, pick_BK, 0)
        name_BK = self.names_LP[safe_BK, 0]
        synonym_BK = self.names_LP[safe_BK, pick_BK]
        view_B1 = view_B[:, None]
        text_BK = np.select(
            [view_B1 == 0, view_B1 == 1, view_B1 == 2],
            [name_BK, synonym_BK, self._short_offset + safe_BK],
            self._all_offset + safe_BK,
        )
        # Token means exist for names and synonyms alone: "all" draws one of them.
        token_BK = np.where((view_B1 == 1) | (view_B1 == 3), synonym_BK, name_BK)
        return text_BK, token_BK

    def _examples(
        self, epoch: int, rows_B: np.ndarray, labels_BK: np.ndarray, right_BK: np.ndarray
    ) -> np.ndarray | None:
        """Rows that serve as examples of each candidate [B, K, X]; never the row itself."""
        u_B2 = self._uniforms(epoch, "examples", rows_B, 2)
        some_B = u_B2[:, 0] < self.config.example_probability
        if not some_B.any():
            return None
        wanted_B = EXAMPLE_COUNTS[(u_B2[:, 1] * len(EXAMPLE_COUNTS)).astype(np.int64)]
        wanted_B = np.where(some_B, wanted_B, 0)
        safe_BK = labels_BK.clip(min=0)
        total_BK = self._label_count_L[safe_BK]
        available_BK = total_BK - right_BK
        count_BK = np.minimum(wanted_B[:, None], available_BK) * (labels_BK >= 0)
        # Consecutive places (cyclic) among the label's rows; for a right label they begin
        # after the row's own place and end before it comes round again.
        start_BK = self._uniforms(epoch, "example start", rows_B, labels_BK.shape[1])
        slack_BK = np.where(right_BK, available_BK - count_BK + 1, total_BK)
        start_BK = (start_BK * slack_BK).astype(np.int64)
        which_BK = (labels_BK[:, :, None] == self.row_labels_NP[rows_B][:, None, :]).argmax(2)
        own_BK = np.take_along_axis(self._place_NP[rows_B], which_BK, 1)
        own_BK = own_BK - self._label_start_L[safe_BK]
        start_BK = start_BK + np.where(right_BK, own_BK + 1, 0)
        steps_X = np.arange(int(count_BK.max(initial=0)))
        if not len(steps_X):
            return None
        place_BKX = (start_BK[:, :, None] + steps_X) % np.maximum(total_BK, 1)[:, :, None]
        flat_BKX = self._label_start_L[safe_BK][:, :, None] + place_BKX
        # A label without rows may begin past the end; its places are masked below.
        rows_BKX = self._rows_by_label_M[np.minimum(flat_BKX, len(self._rows_by_label_M) - 1)]
        return np.where(steps_X < count_BK[:, :, None], rows_BKX, -1)


def _among(labels_BK: np.ndarray, right_BP: np.ndarray) -> np.ndarray:
    """Which labels are right ones, bool [B, K]; -1 is none in either."""
    found_BKP = labels_BK[:, :, None] == right_BP[:, None, :]
    return (found_BKP & (right_BP >= 0)[:, None, :]).any(2)


class EpisodeObjective:
    """What `sce.training.epoch.train_epoch` lowers: the cross entropy of drawn episodes; of rows in
    which several labels may be right the binary cross entropy of each label, by which the model
    answers mode "multi".

    Args:
        model: on `device`, where every vector that training needs is kept as well.
    """

    def __init__(self, model: SCEModel, sampler: EpisodeSampler, device: torch.device) -> None:
        self.model: nn.Module = model
        self.seed, self.keys_N = sampler.seed, sampler.keys_N
        self.device, self._sampler = device, sampler
        # Copies, since arrays that Ray's workers share cannot be written to, which torch warns of.
        self._queries_ND = torch.from_numpy(np.array(sampler.queries_ND)).to(device)
        self._texts_MD = self._tokens_MH = None
        self._background = None
        if sampler.several_N.any():
            found = Background.of(sampler.queries_ND)
            parts = torch.from_numpy(found.mean_D), torch.from_numpy(found.covariance_DD)
            self._background = tuple(part.to(device) for part in parts)
        if model.uses_embedded_labels or self._background is not None:
            self._texts_MD = torch.from_numpy(np.array(sampler.texts_MD)).to(device)
        self._example_weights_M2 = sampler.example_weights_M2
        if self._example_weights_M2 is not None:
            self._example_weights_M2 = self._example_weights_M2.to(device)
        if sampler.tokens_MH is not None:
            self._tokens_MH = sampler.tokens_MH.to(device)

    def draw(
        self, epoch: int, rows_B: np.ndarray
    ) -> tuple[dict[str, torch.Tensor | None], np.ndarray]:
        """Inputs of the model for these rows, and how many tokens each sample has."""
        episodes = self._sampler.draw(epoch, rows_B)
        tokens_B = episodes.mask_BK.sum(1) + 1  # the labels and the query
        return self.gather(episodes), tokens_B

    def loss(self, inputs: dict[str, torch.Tensor | None]) -> torch.Tensor:
        return self.model(**inputs).loss

    def gather(self, episodes: Episodes) -> dict[str, torch.Tensor | None]:
        """Keyword arguments of `SCEModel.forward` for a batch of episodes."""

        def on_device(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(self.device, non_blocking=True)

        inputs: dict[str, torch.Tensor | None] = {
            "query_embeddings": self._queries_ND[on_device(episodes.rows_B)],
            "label_mask": on_device(episodes.mask_BK),
            "targets": on_device(episodes.targets_B),
        }
        if self._tokens_MH is not None:
            inputs["label_tokens"] = self._tokens_MH[on_device(episodes.token_index_BK)]
        if self._texts_MD is not None:
            index_BK = on_device(episodes.text_index_BK)
            text_BKD = self._texts_MD[index_BK]
            counts_BK = text_BKD.new_zeros(text_BKD.shape[:2])
            examples_BKD = torch.zeros_like(text_BKD)
            if episodes.example_rows_BKX is not None:
                # Only rows that have examples: the others would be most of the work.
                rows_BKX = on_device(episodes.example_rows_BKX)
                present_BKX = rows_BKX >= 0
                counts_BK = present_BKX.sum(-1).to(text_BKD.dtype)
                some_B = counts_BK.sum(-1) > 0
                some_BKXD = self._queries_ND[rows_BKX[some_B].clamp(min=0)]
                sums_BKD = (some_BKXD * present_BKX[some_B].unsqueeze(-1)).sum(2)
                examples_BKD[some_B] = sums_BKD / counts_BK[some_B].clamp(min=1).unsqueeze(-1)
            if self._example_weights_M2 is not None:
                weights_BK2 = self._example_weights_M2[index_BK]
                text_BKD = pool_labels(text_BKD, examples_BKD, counts_BK, weights_BK2)
            else:  # always given, so that the weights of the examples are in every step's graph
                inputs["example_embeddings"] = examples_BKD
                inputs["example_counts"] = counts_BK
            inputs["label_embeddings"] = text_BKD
            if self._background is not None and (episodes.targets_B < 0).any():
                inputs["right_labels"] = on_device(episodes.right_BK)
                inputs["z_scores"] = self._z_scores(inputs["query_embeddings"], text_BKD)
        return inputs

    def _z_scores(self, queries_BD: torch.Tensor | None, g_BKD: torch.Tensor) -> torch.Tensor:
        """As `sce.model.background.Background.z_scores`, of each row's own labels, [B, K]."""
        assert queries_BD is not None
        assert self._background is not None
        mean_D, covariance_DD = self._background
        g_BKD = nn.functional.normalize(g_BKD, dim=-1)
        deviation_BK = ((g_BKD @ covariance_DD) * g_BKD).sum(-1).clamp(min=0).sqrt()
        cosine_BK = torch.einsum("bd,bkd->bk", queries_BD - mean_D, g_BKD)
        return cosine_BK / deviation_BK.clamp(min=MIN_DEVIATION)
