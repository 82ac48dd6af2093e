#include "scheduler/http/http_server.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "core/check.h"
#include "core/log.h"
#include "core/thread.h"

namespace saesweep::scheduler {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;
namespace asio = boost::asio;
using Tcp = asio::ip::tcp;

// What all connections of a server share; outlives them. Used on the io thread only.
struct Shared {
  HttpOptions options;
  HttpHandler handler;
  std::size_t connections = 0;
};

// One connection. It lives as long as one of its operations is pending: each completion handler
// holds a shared_ptr, and exactly one operation is pending at a time.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Tcp::socket socket, Shared& shared) : stream_(std::move(socket)), shared_(shared) {
    ++shared_.connections;
  }
  ~Connection() { --shared_.connections; }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void read() {
    parser_.emplace();
    parser_->header_limit(shared_.options.max_header_bytes);
    parser_->body_limit(shared_.options.max_body_bytes);
    // Set once for the whole request: a client that sends a byte a second gains nothing.
    stream_.expires_after(shared_.options.timeout);
    http::async_read(
        stream_, buffer_, *parser_,
        [self = shared_from_this()](beast::error_code error, std::size_t) { self->answer(error); });
  }

 private:
  void answer(beast::error_code error) {
    if (error == http::error::end_of_stream || error == beast::error::timeout) return close();
    if (error == http::error::header_limit)
      return write({.status = 431, .body = "request header too large\n"}, false);
    if (error == http::error::body_limit)
      return write({.status = 413, .body = "request body too large\n"}, false);
    if (error) {
      // The parser's complaints are about what was sent; anything else is a connection that broke.
      if (error.category() == make_error_code(http::error::bad_method).category())
        return write({.status = 400, .body = "not an HTTP request\n"}, false);
      return;
    }
    const auto& request = parser_->get();
    const bool keep_alive = request.keep_alive();
    head_ = request.method() == http::verb::head;
    if (request.method() != http::verb::get && !head_)
      return write({.status = 405, .body = "only GET and HEAD\n"}, keep_alive);
    const std::string target(request.target());
    if (target.empty() || target.front() != '/')
      return write({.status = 400, .body = "the target must begin with /\n"}, false);
    const std::size_t question = target.find('?');
    write(shared_.handler(
              {.path = target.substr(0, question),
               .query = question == std::string::npos ? "" : target.substr(question + 1)}),
          keep_alive);
  }

  void write(HttpResponse response, bool keep_alive) {
    answer_ = {};
    answer_.version(11);
    answer_.result(response.status);
    answer_.set(http::field::server, "saesweep");
    answer_.set(http::field::content_type, response.content_type);
    answer_.set(http::field::cache_control, "no-store");
    answer_.set("X-Content-Type-Options", "nosniff");
    if (response.status == 405) answer_.set(http::field::allow, "GET, HEAD");
    answer_.keep_alive(keep_alive);
    answer_.content_length(response.body.size());
    if (!std::exchange(head_, false)) answer_.body() = std::move(response.body);
    stream_.expires_after(shared_.options.timeout);
    http::async_write(
        stream_, answer_,
        [self = shared_from_this(), keep_alive](beast::error_code error, std::size_t) {
          if (error) return;
          if (!keep_alive) return self->close();
          self->read();
        });
  }

  // Ends our side, then discards what the client still sends until it ends its own: a socket closed
  // over unread input resets the connection, and the client might never see the answer.
  void close() {
    beast::error_code ignored;
    stream_.socket().shutdown(Tcp::socket::shutdown_send, ignored);
    stream_.expires_after(shared_.options.timeout);
    discard(kDiscardedBytes);
  }

  void discard(std::size_t patience) {
    buffer_.clear();
    stream_.async_read_some(buffer_.prepare(4096), [self = shared_from_this(), patience](
                                                       beast::error_code error, std::size_t got) {
      if (!error && got < patience) self->discard(patience - got);
    });
  }

  static constexpr std::size_t kDiscardedBytes = 1 << 20;

  beast::tcp_stream stream_;
  Shared& shared_;
  beast::flat_buffer buffer_{1 << 20};  // more unread input than this is an error, not memory
  std::optional<http::request_parser<http::string_body>> parser_;
  http::response<http::string_body> answer_;
  bool head_ = false;
};

}  // namespace

struct HttpServer::State {
  State(HttpOptions options, HttpHandler handler)
      : shared{std::move(options), std::move(handler), 0} {}

  // Everything that is pending; destroying it closes the connections.
  struct Loop {
    asio::io_context io{1};
    Tcp::acceptor acceptor{io};
    asio::steady_timer pause{io};
  };

  Shared shared;
  std::unique_ptr<Loop> loop = std::make_unique<Loop>();
  std::uint16_t port = 0;
  std::jthread thread;  // last: joined first

  void accept() {
    loop->acceptor.async_accept([this](beast::error_code error, Tcp::socket socket) {
      if (error == asio::error::operation_aborted) return;
      if (error) {
        // Out of file descriptors, most likely: wait for connections to end instead of spinning.
        log::warn("http.accept_failed error={}", error.message());
        loop->pause.expires_after(std::chrono::milliseconds(100));
        loop->pause.async_wait([this](beast::error_code aborted) {
          if (!aborted) accept();
        });
        return;
      }
      // Without it, an answer in two packets waits 40 ms for the client's acknowledgement.
      socket.set_option(Tcp::no_delay(true), error);
      if (shared.connections < shared.options.max_connections)
        std::make_shared<Connection>(std::move(socket), shared)->read();
      accept();
    });
  }
};

HttpServer::HttpServer(std::unique_ptr<State> state) : state_(std::move(state)) {}
HttpServer::HttpServer(HttpServer&&) noexcept = default;
HttpServer& HttpServer::operator=(HttpServer&& other) noexcept {
  stop();
  state_ = std::move(other.state_);
  return *this;
}
HttpServer::~HttpServer() { stop(); }

Result<HttpServer> HttpServer::start(HttpOptions options, HttpHandler handler) {
  SAE_CHECK(handler != nullptr, "an HTTP server without a handler");
  beast::error_code error;
  const auto address = asio::ip::make_address(options.address, error);
  if (error)
    return fail(ErrorCode::kInvalidArgument, "\"{}\" is not an IP address", options.address);
  const Tcp::endpoint endpoint(address, options.port);
  auto state = std::make_unique<State>(std::move(options), std::move(handler));
  const auto refuse = [&](const char* act) {
    return fail(ErrorCode::kUnavailable, "{} {}:{}: {}", act, endpoint.address().to_string(),
                endpoint.port(), error.message());
  };
  Tcp::acceptor& acceptor = state->loop->acceptor;
  acceptor.open(endpoint.protocol(), error);
  if (error) return refuse("open a socket for");
  // So that a restarted server gets its port back while old connections linger.
  acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (error) return refuse("bind to");
  acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) return refuse("listen on");
  state->port = acceptor.local_endpoint(error).port();
  state->accept();
  state->thread = run_thread("http", [&io = state->loop->io](const std::stop_token&) { io.run(); });
  return HttpServer(std::move(state));
}

std::uint16_t HttpServer::port() const { return state_->port; }

std::string HttpServer::url() const {
  const std::string& address = state_->shared.options.address;
  const bool v6 = address.find(':') != std::string::npos;
  return fmt::format("http://{}{}{}:{}", v6 ? "[" : "", address, v6 ? "]" : "", state_->port);
}

void HttpServer::stop() {
  if (!state_ || !state_->thread.joinable()) return;
  state_->loop->io.stop();
  state_->thread.join();
  state_->loop.reset();
}

HttpHandler metrics_handler(std::function<std::string()> expose) {
  return [expose = std::move(expose)](const HttpRequest& request) -> HttpResponse {
    if (request.path != "/metrics") return {.status = 404, .body = "not found; try /metrics\n"};
    return {.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = expose()};
  };
}

}  // namespace saesweep::scheduler
