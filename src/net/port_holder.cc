// /proc/net/tcp gives the socket's inode; the fd links of processes give its owner.
#include "net/port_holder.h"

#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "base/format.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// Rows of /proc/net/tcp: "sl local_address rem_address st ... inode"; 0A is LISTEN.
void collect_listening_inodes(const char* table, int port, std::set<std::string>* inodes) {
  std::ifstream rows(table);
  std::string row;
  std::getline(rows, row);
  const std::string suffix = format(":{:04X}", port);
  while (std::getline(rows, row)) {
    std::istringstream fields(row);
    std::string slot, local, remote, state, queues, timer, retransmits, uid, timeout, inode;
    fields >> slot >> local >> remote >> state >> queues >> timer >> retransmits >> uid >>
        timeout >> inode;
    if (state == "0A" && local.ends_with(suffix) && inode != "0")
      inodes->insert("socket:[" + inode + "]");
  }
}

bool holds_one_of(const fs::path& process, const std::set<std::string>& inodes) {
  std::error_code ignored;
  fs::directory_iterator fds(process / "fd", ignored), end;
  while (!ignored && fds != end) {
    std::error_code unreadable;
    if (inodes.contains(fs::read_symlink(fds->path(), unreadable).string())) return true;
    fds.increment(ignored);
  }
  return false;
}

}  // namespace

std::string port_holder(int port) {
  std::set<std::string> inodes;
  collect_listening_inodes("/proc/net/tcp", port, &inodes);
  collect_listening_inodes("/proc/net/tcp6", port, &inodes);
  if (inodes.empty()) return "";
  std::error_code ignored;
  fs::directory_iterator processes("/proc", ignored), end;
  while (!ignored && processes != end) {
    const std::string pid = processes->path().filename().string();
    if (pid.find_first_not_of("0123456789") == std::string::npos &&
        holds_one_of(processes->path(), inodes)) {
      std::ifstream comm(processes->path() / "comm");
      std::string name;
      std::getline(comm, name);
      return format("pid {} ({})", pid, name);
    }
    processes.increment(ignored);
  }
  return "";
}

}  // namespace nibble
