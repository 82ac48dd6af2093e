#include "worker/executor/open_stream.h"

#include <optional>
#include <utility>

#include "core/digest.h"
#include "core/json.h"
#include "core/log.h"
#include "worker/activations/chunk_client.h"
#include "worker/activations/harvest.h"

namespace saesweep::worker {
namespace {

// Fetches chunks through the agent. Connects at the first chunk, when it is known how many rows one
// has at most.
class ChunkFetcher {
 public:
  ChunkFetcher(const sweeps::StreamSpec& spec, std::int64_t d_in, std::uint64_t cache_bytes,
               AgentLink& link, std::function<bool()> stop)
      : cache_json_(canonical_json(spec.cache_json())),
        name_(sha256(cache_json_).hex()),
        d_in_(d_in),
        dtype_(spec.dtype),
        cache_bytes_(cache_bytes),
        link_(link),
        stop_(std::move(stop)) {}
  // What no run reads may be evicted.
  ~ChunkFetcher() {
    if (client_) client_->close();
  }
  ChunkFetcher(const ChunkFetcher&) = delete;
  ChunkFetcher& operator=(const ChunkFetcher&) = delete;

  Result<std::uint32_t> fetch(std::uint32_t index, std::span<std::byte> out,
                              const ChunkClient::Harvest& harvest) {
    if (!tried_) {
      tried_ = true;
      auto client = connect(out.size() / row_bytes());
      if (client)
        client_ = std::move(*client);
      else
        log::warn("chunks.without_cache stream={} problem={}", name_, client.error().message);
    }
    if (!client_) return harvest(out);
    return client_->fetch(index, out, harvest, stop_);
  }

 private:
  std::size_t row_bytes() const { return static_cast<std::size_t>(d_in_) * size_of(dtype_); }

  Result<ChunkClient> connect(std::size_t rows_per_chunk) {
    protocol::ChunkOpen request;
    request.set_stream(name_);
    request.set_stream_json(cache_json_);
    request.set_cache_bytes(cache_bytes_);
    request.set_rows_per_chunk(static_cast<std::uint32_t>(rows_per_chunk));
    request.set_d_in(static_cast<std::uint32_t>(d_in_));
    request.set_dtype(static_cast<std::uint32_t>(dtype_));
    SAE_TRY(const auto opened, link_.open_chunks(request));
    return ChunkClient::open(
        name_, opened.message, opened.memory.get(), row_bytes(),
        [&link = link_](const protocol::ChunkRequest& asked) { return link.ask(asked); });
  }

  std::string cache_json_, name_;
  std::int64_t d_in_;
  DType dtype_;
  std::uint64_t cache_bytes_;
  AgentLink& link_;
  std::function<bool()> stop_;
  bool tried_ = false;
  std::optional<ChunkClient> client_;
};

}  // namespace

const Documents& StreamSources::documents() const {
  if (tokens != nullptr) return *tokens;
  return *activations;
}

Result<StreamSources> open_sources(const sweeps::StreamSpec& spec, const RunTools& tools) {
  StreamSources sources;
  if (spec.data.source == "activations") {
    SAE_TRY(sources.activations, tools.warm.activations(spec.data, spec.holdout));
    return sources;
  }
  if (!spec.model)
    return fail(ErrorCode::kInvalidArgument, "data.source '{}' needs a model", spec.data.source);
  SAE_TRY(sources.model, tools.warm.model(*spec.model));
  for (const std::string& hook : spec.hooks()) SAE_TRY_VOID(sources.model->check_hook(hook));
  SAE_TRY(sources.tokens, tools.warm.tokens(spec.data, spec.holdout,
                                            sources.model->config().context, tools.pool.threads()));
  return sources;
}

Result<std::unique_ptr<CachedStream>> open_stream(const sweeps::StreamSpec& spec,
                                                  const StreamSources& sources,
                                                  std::uint64_t cache_bytes, const RunTools& tools,
                                                  StreamEvents events) {
  auto harvester = sources.tokens != nullptr
                       ? make_harvester(spec, sources.model, sources.tokens, tools.pool)
                       : make_harvester(spec, sources.activations);
  if (!harvester) return fail(std::move(harvester.error()));
  FetchChunk fetch;
  if (cache_bytes > 0) {
    const auto fetcher = std::make_shared<ChunkFetcher>(spec, (*harvester)->d_in(), cache_bytes,
                                                        tools.link, events.stop);
    fetch = [fetcher](std::uint32_t index, std::span<std::byte> out,
                      const ChunkClient::Harvest& harvest) {
      return fetcher->fetch(index, out, harvest);
    };
  }
  return CachedStream::open(spec, std::move(*harvester), std::move(fetch), std::move(events));
}

}  // namespace saesweep::worker
