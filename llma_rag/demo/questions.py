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
        "How long does the crossing from Port Ansel to Tarn Holm take?",
        "ferry-timetable.md",
        "The crossing from Port Ansel to Tarn Holm takes 75 minutes in calm weather.",
    ),
    Question(
        "What does the general alarm consist of?",
        "ferry-safety.md",
        "The general alarm consists of seven short blasts and one long blast of the ship's "
        "whistle.",
    ),
    Question(
        "Which discount does a group of ten or more persons receive?",
        "ferry-tickets.md",
        "A group of ten or more persons receives a discount of 15 percent if it books at least "
        "seven days ahead.",
    ),
    Question(
        "Who founded Skerry Line?",
        "ferry-company.md",
        "Captain Ingrid Halvard founded Skerry Line in 1961 with a single wooden boat named "
        "Petrel.",
    ),
    Question(
        "What does a copied span say?",
        "citations.md",
        "A copied span says that certain characters of the answer equal certain characters of a "
        "reference.",
    ),
    Question(
        "How does rollback in LLMA forget a rejected draft?",
        "verification.md",
        "Rollback in LLMA moves a length instead of copying memory, so that forgetting a rejected "
        "draft costs nothing.",
    ),
    Question(
        "What is tokens per forward?",
        "statistics.md",
        "Tokens per forward is the number of generated tokens divided by the number of forward "
        "passes.",
    ),
    Question(
        "What does the option stop take?",
        "stopping.md",
        "Stop strings are given through the option stop, as one string or as a list of strings.",
    ),
)
