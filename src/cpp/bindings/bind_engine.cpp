// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "bindings/gil_release.h"
#include "bindings/module.h"
#include "bindings/python_executor.h"
#include "core/named_policy.h"
#include "engine/engine.h"
#include "exec/gpu_executor.h"
#include "exec/program_executor.h"

namespace py = pybind11;

namespace paged {
namespace {

using Int64Array = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;
using BoolArray = py::array_t<bool, py::array::c_style | py::array::forcecast>;
using Seconds = std::chrono::duration<double>;
using Milliseconds = std::chrono::milliseconds;

// Waits without the GIL, in slices short enough that Ctrl-C is felt at once.
bool wait_interruptibly(Request& request, std::optional<double> timeout, bool until_finished) {
  constexpr Milliseconds kSlice(100);
  if (timeout) {
    PAGED_CHECK(!std::isnan(*timeout), "timeout must be a number of seconds, got NaN");
    timeout = std::clamp(*timeout, 0.0, 1e9);  // what a clock can add
  }
  const auto start = std::chrono::steady_clock::now();
  while (true) {
    auto slice = kSlice;
    if (timeout) {
      const Seconds left = Seconds(*timeout) - Seconds(std::chrono::steady_clock::now() - start);
      slice = std::min(kSlice, std::chrono::ceil<Milliseconds>(std::max(left, Seconds(0))));
    }
    {
      const GilRelease release;
      if (until_finished ? request.wait_finished_for(slice) : request.wait_for(slice)) return true;
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (timeout && Seconds(std::chrono::steady_clock::now() - start).count() >= *timeout) return false;
  }
}

constexpr std::array<const char*, 4> kLogprobsModes = {"raw_logprobs", "processed_logprobs", "raw_logits",
                                                       "processed_logits"};

LogprobsMode logprobs_mode_of(const std::string& name) {
  const auto found = std::find(kLogprobsModes.begin(), kLogprobsModes.end(), name);
  PAGED_CHECK(found != kLogprobsModes.end(),
              "logprobs_mode must be raw_logprobs, processed_logprobs, raw_logits or processed_logits, got ", name);
  return static_cast<LogprobsMode>(found - kLogprobsModes.begin());
}

// (ids, values, ranks), each [tokens, 1 + num_top].
py::tuple arrays_of(const std::vector<ScoredToken>& scores, std::int32_t num_top) {
  const py::ssize_t cols = num_top + 1, rows = std::ssize(scores) / cols;
  py::array_t<std::int32_t> ids({rows, cols}), ranks({rows, cols});
  py::array_t<float> values({rows, cols});
  for (std::size_t i = 0; i < scores.size(); ++i) {
    ids.mutable_data()[i] = scores[i].id;
    ranks.mutable_data()[i] = scores[i].rank;
    values.mutable_data()[i] = scores[i].value;
  }
  return py::make_tuple(ids, values, ranks);
}

py::tuple as_tuple(const Request& request, const Delta& delta) {
  py::object reason = py::none(), scores = py::none();
  if (delta.finish_reason != FinishReason::kNone) reason = py::str(name_of(delta.finish_reason));
  const std::int32_t num_logprobs = request.spec().sampling.num_logprobs;
  if (num_logprobs >= 0) scores = arrays_of(delta.scores, num_logprobs);
  return py::make_tuple(py::str(delta.text), py::cast(delta.token_ids), reason, scores);
}

py::object prompt_scores_of(const Request& request) {
  const SamplingParams& params = request.spec().sampling;
  if (params.num_prompt_logprobs < 0) return py::none();
  return py::make_tuple(params.first_prompt_logprob, arrays_of(request.prompt_scores(), params.num_prompt_logprobs));
}

void bind_request(py::module_& module) {
  py::class_<SamplingParams>(module, "SamplingParams", "Checked and used by Engine.submit; see paged.SamplingParams.")
      .def(py::init<>())
      .def_readwrite("temperature", &SamplingParams::temperature)
      .def_readwrite("top_p", &SamplingParams::top_p)
      .def_readwrite("top_k", &SamplingParams::top_k)
      .def_readwrite("min_p", &SamplingParams::min_p)
      .def_readwrite("repetition_penalty", &SamplingParams::repetition_penalty)
      .def_readwrite("presence_penalty", &SamplingParams::presence_penalty)
      .def_readwrite("frequency_penalty", &SamplingParams::frequency_penalty)
      .def_readwrite("logit_bias", &SamplingParams::logit_bias)
      .def_readwrite("allowed_token_ids", &SamplingParams::allowed_token_ids)
      .def_readwrite("bad_words", &SamplingParams::bad_words)
      .def_readwrite("num_logprobs", &SamplingParams::num_logprobs)
      .def_readwrite("num_prompt_logprobs", &SamplingParams::num_prompt_logprobs)
      .def_readwrite("first_prompt_logprob", &SamplingParams::first_prompt_logprob)
      .def_property(
          "logprobs_mode",
          [](const SamplingParams& self) { return kLogprobsModes[static_cast<std::size_t>(self.logprobs_mode)]; },
          [](SamplingParams& self, const std::string& name) { self.logprobs_mode = logprobs_mode_of(name); })
      .def_readwrite("seed", &SamplingParams::seed)
      .def_readwrite("max_tokens", &SamplingParams::max_tokens)
      .def_readwrite("min_tokens", &SamplingParams::min_tokens)
      .def_readwrite("stop_token_ids", &SamplingParams::stop_token_ids)
      .def_readwrite("stop", &SamplingParams::stop)
      .def_readwrite("include_stop_str_in_output", &SamplingParams::include_stop_str_in_output)
      .def_readwrite("skip_special_tokens", &SamplingParams::skip_special_tokens);
  py::class_<NewsQueue, std::shared_ptr<NewsQueue>>(module, "NewsQueue", "The requests that have news for somebody.")
      .def(py::init<>())
      .def("wait", &NewsQueue::wait, py::call_guard<GilRelease>(),
           "Blocks until there is news: the ids. An empty list: the queue is closed.")
      .def("close", &NewsQueue::close);
  py::class_<Request, std::shared_ptr<Request>>(module, "Request", "One submitted request and its outbox.")
      .def_property_readonly("id", &Request::id)
      .def_property_readonly("finished", &Request::finished)
      .def_property_readonly("error", &Request::error)
      .def_property_readonly("num_cached_tokens", &Request::num_cached_tokens)
      .def_property_readonly("timings",
                             [](const Request& self) {
                               const RequestTimings t = self.timings();
                               return py::make_tuple(t.queued_seconds, t.first_token_seconds, t.total_seconds);
                             })
      .def_property_readonly("token_seconds",
                             [](const Request& self) {
                               const std::vector<float> seconds = self.token_seconds();
                               return py::array_t<float>(static_cast<py::ssize_t>(seconds.size()), seconds.data());
                             })
      .def(
          "wait", [](Request& self, std::optional<double> timeout) { return wait_interruptibly(self, timeout, false); },
          py::arg("timeout") = py::none(), "Until there is something to take or it has finished; False on timeout.")
      .def(
          "wait_finished",
          [](Request& self, std::optional<double> timeout) { return wait_interruptibly(self, timeout, true); },
          py::arg("timeout") = py::none())
      .def("ready", &Request::ready, py::kw_only(), py::arg("until_finished"))
      .def("notify", &Request::notify, py::arg("queue").none(false), py::kw_only(), py::arg("until_finished"),
           "Pushes the id to the queue, once, as soon as it is ready.")
      .def(
          "take", [](Request& self) { return as_tuple(self, self.take()); },
          "(text, token_ids, finish_reason or None, scores of the tokens or None): what has come since the last call.")
      .def(
          "answer", [](Request& self) { return as_tuple(self, self.answer()); },
          "(text, token_ids, finish_reason or None, scores of the tokens or None): all that has come.")
      .def("prompt_scores", &prompt_scores_of,
           "(the first prompt token scored, scores of those so far), or None: not asked for.");
}

GuideKind guide_kind_of(const std::string& name) {
  if (name == "mask") return GuideKind::kMask;
  if (name == "token") return GuideKind::kToken;
  PAGED_CHECK(name == "none", "guide must be none, mask or token, got ", name);
  return GuideKind::kNone;
}

std::shared_ptr<Request> submit(Engine& engine, std::vector<TokenId> prompt, SamplingParams sampling,
                                std::int32_t priority, std::string cache_salt,
                                const std::optional<std::pair<std::string, std::uint64_t>>& guide, SequenceId follows,
                                SessionId session, bool keeps_answer) {
  const GuideKind kind = guide ? guide_kind_of(guide->first) : GuideKind::kNone;
  const std::uint64_t guide_key = guide ? guide->second : 0;
  const GilRelease release;
  return engine.submit({std::move(prompt), std::move(sampling), priority, std::move(cache_salt), kind, guide_key,
                        follows, session, keeps_answer});
}

// The engine takes the executor over: the Python object that carried it is left empty.
std::unique_ptr<Executor> take_executor(const py::object& executor, std::shared_ptr<ThreadPool> threads) {
  if (py::isinstance<ProgramExecutor>(executor)) return executor.cast<std::unique_ptr<ProgramExecutor>>();
  if (py::isinstance<GpuExecutor>(executor)) return executor.cast<std::unique_ptr<GpuExecutor>>();
  const py::object size = py::getattr(executor, "vocab_size", py::none());
  if (!py::isinstance<py::int_>(size) || !py::hasattr(executor, "run") || !py::hasattr(executor, "copy_blocks"))
    throw py::type_error("an executor is a ProgramExecutor, a GpuExecutor, or has vocab_size, run and copy_blocks");
  const auto vocab_size = py::cast<std::int64_t>(size);
  PAGED_CHECK(vocab_size > 0 && vocab_size < std::int64_t{1} << 31, "an executor's vocab_size is ", vocab_size);
  return std::make_unique<PythonExecutor>(executor.attr("run"), executor.attr("copy_blocks"),
                                          static_cast<std::int32_t>(vocab_size), std::move(threads));
}

void close_without_gil(Engine* engine) {
  if (engine->is_of_another_process()) return;  // a forked child leaves its copy alone
  const GilRelease release;
  delete engine;
}

struct EngineHolder {
  void operator()(Engine* engine) const { close_without_gil(engine); }
};

}  // namespace

void bind_engine(py::module_& module) {
  bind_request(module);
  bind_guide(module);
  bind_metrics(module);
  py::class_<TokenTable, std::shared_ptr<TokenTable>>(module, "TokenTable", "The bytes each token stands for.")
      .def(py::init([](const py::bytes& bytes, const Int64Array& offsets, const BoolArray& is_special) {
             return std::make_shared<TokenTable>(
                 std::string(bytes), std::vector<std::int64_t>(offsets.data(), offsets.data() + offsets.size()),
                 std::vector<bool>(is_special.data(), is_special.data() + is_special.size()));
           }),
           py::arg("bytes"), py::arg("offsets"), py::arg("is_special"));
  py::class_<SchedulerConfig>(module, "SchedulerConfig")
      .def(py::init<>())
      .def_readwrite("num_blocks", &SchedulerConfig::num_blocks)
      .def_readwrite("block_size", &SchedulerConfig::block_size)
      .def_readwrite("num_host_blocks", &SchedulerConfig::num_host_blocks)
      .def_readwrite("num_disk_blocks", &SchedulerConfig::num_disk_blocks)
      .def_readwrite("max_num_sequences", &SchedulerConfig::max_num_sequences)
      .def_readwrite("max_num_batched_tokens", &SchedulerConfig::max_num_batched_tokens)
      .def_readwrite("max_model_len", &SchedulerConfig::max_model_len)
      .def_readwrite("enable_prefix_caching", &SchedulerConfig::enable_prefix_caching)
      .def_readwrite("cache_generated_tokens", &SchedulerConfig::cache_generated_tokens)
      .def(
          "set_policy",
          [](SchedulerConfig& self, const std::string& name, double ttl) { self.policy = named_policy(name, ttl); },
          py::arg("name"), py::arg("ttl"), "lru, ttl (of so many seconds), priority or hazard, which is the default.");
  py::class_<Engine, std::unique_ptr<Engine, EngineHolder>>(module, "Engine", "The step loop on a thread of its own.")
      .def(py::init([](const SchedulerConfig& config, const py::object& executor, std::shared_ptr<ThreadPool> threads,
                       std::shared_ptr<TokenTable> token_table, std::shared_ptr<PolicyDesk> policy_desk,
                       const std::string& disk_folder) {
             return std::unique_ptr<Engine, EngineHolder>(
                 new Engine(config, take_executor(executor, std::move(threads)), std::move(token_table),
                            std::move(policy_desk), disk_folder));
           }),
           py::kw_only(), py::arg("config"), py::arg("executor"), py::arg("threads").none(false),
           py::arg("token_table"), py::arg("policy_desk") = py::none(), py::arg("disk_folder") = "")
      .def("submit", &submit, py::arg("prompt"), py::arg("sampling"), py::arg("priority") = 0,
           py::arg("cache_salt") = "", py::kw_only(), py::arg("guide") = py::none(), py::arg("follows") = 0,
           py::arg("session") = 0, py::arg("keeps_answer") = true,
           "guide: its kind and its key. follows: the id of a request of the same prompt, whose first token it awaits. "
           "session: whose turn it is; the prompt is appended to it, and the answer unless keeps_answer is false.")
      .def("cancel", &Engine::cancel, py::arg("id"), py::call_guard<GilRelease>(), "Ends it as cancelled.")
      .def("stop", &Engine::stop, py::arg("id"), py::call_guard<GilRelease>(), "Ends it as stopped.")
      .def("close", &Engine::close, py::call_guard<GilRelease>())
      .def_property_readonly("closed", &Engine::closed)
      .def("stats", &Engine::stats, py::call_guard<GilRelease>())
      .def(
          "start_trace", [](Engine& self, std::int64_t capacity) { self.trace().start(capacity); }, py::arg("capacity"))
      .def("stop_trace", [](Engine& self) { return self.trace().stop(); })
      .def_property_readonly("guide_desk", &Engine::guide_desk);
}

}  // namespace paged
