"""Names of columns and keys that say nothing to train: where a row comes from, how it was made.

Whatever has another name is read, mapped, ignored because the user says so, or refused. Names count
without regard to case, and `-`, blanks and `_` are one. Nothing here goes by likeness: a name is in
the list, or ends in one of a few words that can mean only one thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_ORIGIN = """
    id ids idx index uuid guid uid hash md5 sha sha1 sha256 key row rownum line number no source
    sources origin dataset dataset_name data_source dataset_source subset split config
    subset_name problem_source question_source input_source collection corpus url uri link href
    doi path file file_path filename file_name filepath repo repository repository_name
    repo_name title slug dump crawl snapshot version revision commit license licenses licence
    copyright author authors creator annotator annotators user_id session_id conversation_id
    prompt_id question_id trace_id traceid run_id parent_run_id parent_observation_id request_id
    response_id example_id qid instance_id trajectory_id custom_id message_id thread_id item_id
    parent_id message_tree_id hashed_ip turn_identifier object object_type schema_version
    schemaversion project project_name sub_dataset_name qid trial trial_name episode revisionid
"""
_TIME = """
    date dates time timestamp timestamps created created_at createdat create_time created_date
    updated updated_at updatedat update_time modified modified_at start_time end_time starttime
    endtime latency duration completed_at expires_at inserted_at last_updated
"""
_KIND = """
    language languages lang locale country state city region header user_agent category
    categories topic topics subtopic subject subjects domain domains task task_type task_name
    task_category type types kind name names run_type tag tags keywords intent intents
    difficulty level grade genre style problem_type question_type reasoning_language
    target_language primary_tag other_tags persona_id skill skills knowledge capability
    subcategory sub_category other_task_category template template_idx script language_code
    difficulty_level ability data_type size lang avg_line_length max_line_length
    alphanum_fraction line_count char_count
    word_count compression_ratio size_bytes blob
"""
_MADE = """
    model models model_name model_id model_version generator generated_by generation_model
    completion_model chosen_model rejected_model labelling_model engine provider
    system_fingerprint service_tier temperature top_p top_k max_tokens max_completion_tokens
    max_new_tokens seed n stop stop_sequences presence_penalty frequency_penalty logit_bias
    logprobs top_logprobs stream stream_options store gen_input_config gen_config
    generation_config generation_kwargs sampling_params model_parameters modelparameters
    finish_reason finish_reasons stop_reason stop_sequence usage tokens token_count num_tokens
    n_tokens token_counts input_tokens output_tokens total_tokens length num_turns turn
    turns_count num_turns turn_count turn_index user cost price parallel_tool_calls tool_choice
    response_format raw_generation_responses generation_prompt distilabel_metadata
    used_in_training used_in_kaggle used_in in_gsm8k_train inference_mode is_reasoning_complete
    skip_prompt_formatting order exit_status model_provider cutoff_date
    gen_input_configs gen_response_configs changed_answer_to_majority contest_name contest_start
    contest_start_year time_limit memory_limit
"""
_JUDGED = """
    score scores language_score quality quality_score similarity similarity_score
    min_neighbor_distance min_similar_conversation_id neighbor_distance embedding embeddings
    perplexity ppl toxic toxicity redacted moderation openai_moderation detoxify
    detoxify_moderation llama_guard llama_guard_2 safe flagged pass_rate pass_rate_72b_tir
    correctness_count correctness_math_verify correctness_llama instruct_reward reward_model
    task_category_confidence difficulty_score input_quality quality_explanation
"""
_BESIDE = """
    metadata meta meta_data extra extra_info info annotation annotations comment comments note
    notes status index_name avatar avatarurl avatar_url views likes upvotes votes
"""
NAMES = frozenset(" ".join((_ORIGIN, _TIME, _KIND, _MADE, _JUDGED, _BESIDE)).split())
# Longer texts with blanks in them are prose, whatever their column is called.
LONG = 200
# What trains or steers a model wherever it stands, also inside an object of a harmless name.
MEANT = (
    "messages", "conversations", "conversation", "system", "system_prompt", "system_message",
    "instructions", "tools", "functions", "label", "chosen", "rejected", "thinking", "reasoning",
    "weight", "train",
)  # fmt: skip
# A name that ends so is an identity, a place, a time or a count, whatever stands before it.
_ENDINGS = """
    _id _ids _uuid _hash _url _uri _timestamp _tokens _source _type _metadata _generator
"""
ENDINGS = tuple(_ENDINGS.split())


@lru_cache(maxsize=4096)
def fold(name: str) -> str:
    """Returns a name in lower case with `_` for blanks and hyphens."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


@lru_cache(maxsize=4096)
def is_harmless(name: str) -> bool:
    """Returns whether a column or key of this name carries nothing to train."""
    folded = fold(name)
    known = folded in NAMES or folded.removeprefix("_") in NAMES
    return known or folded.startswith("__") or folded.endswith(ENDINGS)


def weight_of(value: Any) -> str:
    """Describes what a value of a harmless name holds that may be worth training; empty where it
    holds nothing of the kind.
    """
    if isinstance(value, str):
        return "texts of some length" if len(value) > LONG and " " in value else ""
    if isinstance(value, list) and value:
        if isinstance(value[0], str) and any(map(weight_of, value)):
            return "texts of some length"
        return "messages" if all(map(_is_message, value)) else ""
    if isinstance(value, Mapping):
        meant = [f"`{name}`" for name in MEANT if value.get(name) not in (None, "", [], {})]
        return ", ".join(meant) or ("texts of some length" if _has_prose(value) else "")
    return ""


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and (
        ("role" in value and "content" in value) or ("from" in value and "value" in value)
    )


def _has_prose(value: Mapping[str, Any]) -> bool:
    return any(isinstance(item, str) and weight_of(item) for item in value.values())
