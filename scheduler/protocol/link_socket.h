// What the sockets of both ends have in common: options, frames, session ids. Also for a ROUTER or
// DEALER of another plane.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "core/clock.h"
#include "scheduler/protocol/reliable.h"

namespace google::protobuf {
class MessageLite;
}

namespace saesweep::protocol {

inline constexpr std::size_t kSessionBytes = 8;

// For every socket; before it binds or connects.
void set_common_options(zmq::socket_t& socket);
void set_server_options(zmq::socket_t& socket);
void set_client_options(zmq::socket_t& socket);

// Where a socket is bound, with the port that it was given. A dual stack writes IPv4 addresses its
// own way, which is turned back.
std::string bound_endpoint(const zmq::socket_t& socket);

// The two frames of a message, after a routing id if there is one. False if they cannot go now.
bool send_frame(zmq::socket_t& socket, const std::string* routing_id, const OutgoingFrame& frame);
// All frames of one message; nothing if none is there.
std::vector<zmq::message_t> receive_frames(zmq::socket_t& socket);
std::span<const std::byte> bytes_of(const zmq::message_t& message);

// For planes without the reliable layer. False if it cannot go now: whoever waits asks again.
bool send_message(zmq::socket_t& socket, const std::string* routing_id, MessageType type,
                  const google::protobuf::MessageLite& message);
// From the last two of `count` frames. False: they are no message of this type.
bool read_message(const std::vector<zmq::message_t>& frames, std::size_t count, MessageType type,
                  google::protobuf::MessageLite& message);

// Random and never reused; the first byte is not zero (such routing ids are ZeroMQ's).
std::string new_session();
std::string new_routing_id(const std::string& session);
// The session of a routing id; the whole of a shorter one.
std::string session_of(const std::string& routing_id);
// As headers say it: little-endian.
std::uint64_t session_number(const std::string& session);

}  // namespace saesweep::protocol
