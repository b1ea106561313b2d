"""A served model that chats: every turn is one request to an OpenAI-compatible server.

The server puts the conversation into its model's own chat template. Temperature and seed are those
that a loaded model would be given (:mod:`duquant.evaluation.mt_bench.chat_model`), so an answer
depends neither on the other questions nor on their order.
"""

from dataclasses import dataclass

from duquant.evaluation.mt_bench.chat_template import Message
from duquant.evaluation.mt_bench.endpoint import ChatEndpoint
from duquant.evaluation.mt_bench.questions import Question

SERVED = "the served model's own"
"""What the settings of answers say of template and dtype, which the server decides."""
OPTIONS = "--served_model, --max_new_tokens and the chat template of the server"
"""What to check where a request is refused."""


@dataclass(frozen=True)
class ServedChat:
    """Answers questions; may be used by several threads.

    Attributes:
        endpoint: the server, with the tokens that an answer may have.
    """

    endpoint: ChatEndpoint

    def answer(self, question: Question, seed: int) -> list[str]:
        """Answer every turn of a question.

        Args:
            question: what is asked.
            seed: where the server's sampling starts.

        Returns:
            One text per turn.

        Raises:
            ValueError: if the server refuses, or does not answer.
        """
        messages: list[Message] = []
        replies = []
        for turn in question.turns:
            messages.append({"role": "user", "content": turn})
            sampling = {"temperature": question.temperature, "seed": seed}
            reply = self.endpoint.ask(self.endpoint.payload(messages, **sampling)).strip()
            messages.append({"role": "assistant", "content": reply})
            replies.append(reply)
        return replies
