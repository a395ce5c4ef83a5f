"""Client packages, unchanged, against a running server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient

from tests.serving.test_serve import process
from worldpm import Scorer
from worldpm.serving.client import GOOD, POOR, QUESTION

DOCUMENTS = [POOR, GOOD, "It depends."]


@pytest.fixture(scope="module")
def url(road: Path) -> Iterator[str]:
    """A server that accepts any model name."""
    with process(road, "--any-model-name") as (_, address):
        yield address


@pytest.fixture(scope="module")
def offline(road: Path) -> list[float]:
    """The rewards of the documents."""
    return Scorer.load(road / "checkpoint").rewards(QUESTION, DOCUMENTS)


@pytest.fixture(scope="module")
def order(offline: list[float]) -> list[int]:
    """Indices of the documents, best first."""
    return sorted(range(len(offline)), key=lambda index: -offline[index])


def test_hugging_faces_client_classifies_text(url: str, road: Path) -> None:
    client = InferenceClient(model=url)
    scorer = Scorer.load(road / "checkpoint")
    ids = scorer.encoder.tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": GOOD}],
        tokenize=False,
    )
    (plain,) = client.text_classification(str(ids))
    (raw,) = client.text_classification(str(ids), function_to_apply="none")
    assert raw.score == pytest.approx(scorer.rewards(QUESTION, [GOOD])[0], abs=1e-5)
    assert 0 < plain.score < 1
    assert plain.label == "LABEL_0"


def test_coheres_client_ranks(url: str, offline: list[float], order: list[int]) -> None:
    cohere: Any = pytest.importorskip("cohere", reason="cohere is not installed")
    for client in (cohere.ClientV2("key", base_url=url), cohere.Client("key", base_url=url)):
        ranking = client.rerank(model="rerank-v3.5", query=QUESTION, documents=DOCUMENTS, top_n=2)
        assert [result.index for result in ranking.results] == order[:2]
        scores = [result.relevance_score for result in ranking.results]
        assert scores == pytest.approx([offline[index] for index in order[:2]], abs=1e-5)


def test_openais_client_reads_rewards_as_embeddings(url: str) -> None:
    openai: Any = pytest.importorskip("openai", reason="openai is not installed")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    # the client asks for base64 unless a format is given
    numbers = [
        client.embeddings.create(model="any", input=["hello", "you"], **more).data[1].embedding
        for more in ({}, {"encoding_format": "float"})
    ]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)
    assert "any" not in [model.id for model in client.models.list()]


def test_a_limit_of_documents_that_are_shorter_has_no_effect(url: str, order: list[int]) -> None:
    # Haystack sends the limit of Cohere's models
    body = {"query": QUESTION, "documents": DOCUMENTS, "max_tokens_per_doc": 4096}
    reply = httpx.post(f"{url}/v2/rerank", json=body)
    assert [row["index"] for row in reply.json()["results"]] == order


@pytest.mark.filterwarnings("ignore")
def test_langchains_reranker_ranks(url: str, order: list[int]) -> None:
    langchain: Any = pytest.importorskip("langchain_cohere", reason="langchain is not installed")
    ranker = langchain.CohereRerank(
        model="rerank-v3.5", cohere_api_key="key", base_url=url, top_n=3
    )
    assert [row["index"] for row in ranker.rerank(DOCUMENTS, QUESTION)] == order
