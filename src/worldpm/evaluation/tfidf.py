"""A baseline without a neural network: logistic regression on the difference of the TF-IDF vectors
of two responses."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from worldpm.benchmarks.items import Item


def fit(items: Sequence[Item], *, seed: int = 0) -> Callable[[Item], list[float]]:
    """Fit a judge to the items' preferences and weights. It gives each response of an item a
    reward.

    Features are single words and pairs of words. The prompt is left out, because both responses of
    a pair have the same prompt.
    """
    # min_df=2: a feature that only one response has cannot generalize
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

    # use every pair in both orders, so that both labels are equally frequent
    model = LogisticRegression(fit_intercept=False, max_iter=1000, random_state=seed)
    labels = np.repeat([1, 0], len(weights))
    model.fit(vstack([difference, -difference]), labels, sample_weight=np.tile(weights, 2))

    def judge(item: Item) -> list[float]:
        vectors = vectorizer.transform([response.content for response in item.responses])
        rewards: list[float] = model.decision_function(vectors).tolist()
        return rewards

    return judge
