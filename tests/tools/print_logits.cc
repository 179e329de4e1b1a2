// print_logits MODEL OUT ID...: float32 logits [ids, vocabulary] of one sequence, as raw bytes in
// OUT. For tools/cross_check.py.
#include <cstdio>
#include <fstream>

#include "engine/scorer.h"

int main(int argc, char** argv) {
  using namespace nibble;
  if (argc < 4) {
    std::fputs("usage: print_logits MODEL OUT ID...\n", stderr);
    return 2;
  }
  std::vector<int32_t> ids;
  for (int i = 3; i < argc; ++i) ids.push_back(std::atoi(argv[i]));
  const auto run = [&]() -> Status {
    NB_TRY(const ModelDir dir, ModelDir::open(argv[1]));
    NB_TRY(Scorer scorer, Scorer::open(dir, {}, static_cast<int32_t>(ids.size())));
    std::ofstream out(argv[2], std::ios::binary);
    NB_TRY_STATUS(scorer.score(ids, [&](int32_t, const Tensor& logits) {
      out.write(static_cast<const char*>(logits.data),
                static_cast<std::streamsize>(logits.num_bytes()));
    }));
    return {};
  };
  const Status status = run();
  if (status) return 0;
  std::fprintf(stderr, "print_logits: %s\n", status.error().message.c_str());
  return 1;
}
