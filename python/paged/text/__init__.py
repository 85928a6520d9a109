# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back, and conversations to prompts."""

from paged.text.chat import ChatTemplate, ChatTemplateError, load_chat_template
from paged.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["ChatTemplate", "ChatTemplateError", "Tokenizer", "load_chat_template", "load_tokenizer"]
