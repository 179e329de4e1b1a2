// Who holds a TCP port: turns "address in use" into the name of the process to stop. Linux /proc.
#pragma once

#include <string>

namespace nibble {

// "pid 1234 (python3)" of a process that listens on `port`; "" when /proc does not tell (another
// user's process, another namespace).
std::string port_holder(int port);

}  // namespace nibble
