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

    Words and pairs of words count. The prompt has no place in it: it is the same for both responses
    of a pair.
    """
    pairs = [
        (item.responses[p.chosen].content, item.responses[p.rejected].content, p.weight)
        for item in items
        for p in item.preferences
    ]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    vectorizer.fit([response.content for item in items for response in item.responses])
    difference = vectorizer.transform([p[0] for p in pairs]) - vectorizer.transform(
        [p[1] for p in pairs]
    )
    weights = np.array([p[2] for p in pairs])
    labels = np.repeat([1, 0], len(pairs))
    model = LogisticRegression(fit_intercept=False, max_iter=1000, random_state=seed)
    model.fit(
        vstack([difference, -difference]), labels, sample_weight=np.concatenate([weights, weights])
    )

    def judge(item: Item) -> list[float]:
        rewards: list[float] = model.decision_function(
            vectorizer.transform([r.content for r in item.responses])
        ).tolist()
        return rewards

    return judge
