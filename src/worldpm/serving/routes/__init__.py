"""HTTP routes, one module per client whose API they implement."""

from worldpm.serving.client import Client
from worldpm.serving.routes.get_reward import GET_REWARD
from worldpm.serving.routes.own import OWN
from worldpm.serving.routes.sglang import SGLANG
from worldpm.serving.routes.tei import TEI
from worldpm.serving.routes.vllm import VLLM

CLIENTS: tuple[Client, ...] = (VLLM, SGLANG, TEI, GET_REWARD, OWN)
"""Every client, in the order of `/docs`."""
