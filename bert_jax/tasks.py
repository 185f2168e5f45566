"""Fine-tuning tasks as data: how texts become inputs, which head scores them, and how well."""

from bert_jax.tokenizer import Tokenizer


def join(
    tokenizer: Tokenizer, first: list[int], second: list[int] | None, max_length: int
) -> tuple[list[int], list[int]]:
    """[CLS] first [SEP] (second [SEP]), cut to `max_length`, and the segment of every token.

    Cuts as transformers' `truncation=True` does: from the end of the longer text, down to half the
    room each if both are longer than that.

        join(tokenizer, [7, 8], [9], 6) -> [CLS 7 8 SEP 9 SEP], [0 0 0 0 1 1]
    """
    if second is None:
        ids = [tokenizer.cls_id, *first[: max_length - 2], tokenizer.sep_id]
        return ids, [0] * len(ids)
    room = max_length - 3
    shorter, longer = sorted((len(first), len(second)))
    if shorter + longer > room:
        # The half that is rounded up goes to the longer text.
        shorter = min(shorter, room // 2)
        longer = room - shorter
    of_first, of_second = (longer, shorter) if len(first) > len(second) else (shorter, longer)
    segment_a = [tokenizer.cls_id, *first[:of_first], tokenizer.sep_id]
    segment_b = [*second[:of_second], tokenizer.sep_id]
    return segment_a + segment_b, [0] * len(segment_a) + [1] * len(segment_b)
