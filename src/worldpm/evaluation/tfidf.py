"""A baseline without a neural network: logistic regression on the difference of two responses'
TF-IDF vectors."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from worldpm.benchmarks.items import Item


def fit(items: Sequence[Item], *, seed: int = 0) -> Callable[[Item], list[float]]:
    """A judge that gives each response of an item a reward, fitted to the items' preferences and
    their weights.

    Features are single words and pairs of words. The prompt is left out: it is the same for both
    responses of a pair.
    """
    # a feature of a single response says nothing about others
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    vectorizer.fit([response.content for item in items for response in item.responses])

    chosen: list[str] = []
    rejected: list[str] = []
    weights: list[float] = []
    for item in items:
        for preference in item.preferences:
            chosen.append(item.responses[preference.chosen].content)
            rejected.append(item.responses[preference.rejected].content)
            weights.append(preference.weight)
    difference = vectorizer.transform(chosen) - vectorizer.transform(rejected)

    # every pair is read from both sides, so that neither label is the more frequent one
    model = LogisticRegression(fit_intercept=False, max_iter=1000, random_state=seed)
    labels = np.repeat([1, 0], len(weights))
    model.fit(vstack([difference, -difference]), labels, sample_weight=np.tile(weights, 2))

    def judge(item: Item) -> list[float]:
        vectors = vectorizer.transform([response.content for response in item.responses])
        rewards: list[float] = model.decision_function(vectors).tolist()
        return rewards

    return judge
