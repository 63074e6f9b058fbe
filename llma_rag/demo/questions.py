"""What the demo asks, and which sentence of which document answers it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """A question about the bundled documents.

    Attributes:
        text: The question.
        document: Name of the document that answers it.
        sentence: The sentence of that document that answers it.
    """

    text: str
    document: str
    sentence: str


QUESTIONS = (
    Question(
        "When was the lighthouse of Vessa built?",
        "ferry-islands.md",
        "The lighthouse of Vessa was built in 1874 and can be climbed from May to September.",
    ),
    Question(
        "Where is a defibrillator kept?",
        "ferry-safety.md",
        "A defibrillator is kept at the information desk of Fulmar and in the saloon of Kittiwake.",
    ),
    Question(
        "Which discount does a group of ten or more persons receive?",
        "ferry-tickets.md",
        "A group of ten or more persons receives a discount of 15 percent if it books at "
        "least seven days ahead.",
    ),
    Question(
        "Who is the managing director?",
        "ferry-company.md",
        "The managing director is Marit Solheim, who has led the company since 2014.",
    ),
    Question(
        "When is the foghorn sounded?",
        "ferry-weather.md",
        "The foghorn is sounded once every two minutes while a ship is under way in fog.",
    ),
    Question(
        "How does rollback in LLMA forget a rejected draft?",
        "verification.md",
        "Rollback in LLMA moves a length instead of copying memory, so that forgetting a "
        "rejected draft costs nothing.",
    ),
    Question(
        "What does the method submit do?",
        "streaming.md",
        "The method submit hands a request to the worker and returns a future at once.",
    ),
    Question(
        "What does a namespace stand for?",
        "caching.md",
        "A namespace usually stands for one customer, one project or one user.",
    ),
)
"""Those that the bundled model answers rightly, out of more; its card says of how many."""
