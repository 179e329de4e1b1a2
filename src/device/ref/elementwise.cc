// Embedding, copies, activations, rotary embedding and the greedy choice.
#include <cmath>
#include <cstring>
#include <limits>

#include "device/ref/float_types.h"
#include "device/ref/ref_ops.h"

namespace nibble::ref {
namespace {

float sigmoid(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}

int64_t num_rows(const Tensor& x) {
  return x.num_elements() == 0 ? 0 : x.shape[0];
}

}  // namespace

void RefOps::embed(const Tensor& table, const int32_t* ids, const Tensor& out) {
  const int64_t n = table.shape[1];
  with_float_type(out.dtype, [&]<class T>(T) {
    with_float_type(table.dtype, [&]<class W>(W) {
      for (int64_t t = 0; t < num_rows(out); ++t) {
        NB_DCHECK(ids[t] >= 0 && ids[t] < table.shape[0], "token id %d", ids[t]);
        const W* row = table.as<const W>() + static_cast<int64_t>(ids[t]) * n;
        for (int64_t i = 0; i < n; ++i) out.as<T>()[t * n + i] = T(static_cast<float>(row[i]));
      }
    });
  });
}

void RefOps::gather_rows(const Tensor& x, const int32_t* rows, const Tensor& out) {
  const size_t row_bytes = static_cast<size_t>(out.shape[1]) * dtype_size(out.dtype);
  for (int64_t i = 0; i < num_rows(out); ++i)
    std::memcpy(static_cast<std::byte*>(out.data) + static_cast<size_t>(i) * row_bytes,
                static_cast<const std::byte*>(x.data) + static_cast<size_t>(rows[i]) * row_bytes,
                row_bytes);
}

void RefOps::add(const Tensor& x, const Tensor& y) {
  const int64_t count = x.num_elements();
  with_float_type(x.dtype, [&]<class T>(T) {
    for (int64_t i = 0; i < count; ++i)
      x.as<T>()[i] = T(static_cast<float>(x.as<T>()[i]) + static_cast<float>(y.as<T>()[i]));
  });
}

void RefOps::split_pairs(const Tensor& x, const Tensor& first, const Tensor& second) {
  const int64_t n = first.shape[2];
  const int64_t num_heads = first.shape[0] * first.shape[1];
  const size_t bytes = static_cast<size_t>(n) * dtype_size(x.dtype);
  const auto* from = static_cast<const std::byte*>(x.data);
  for (int64_t h = 0; h < num_heads; ++h) {
    const auto offset = static_cast<size_t>(h) * bytes;
    std::memcpy(static_cast<std::byte*>(first.data) + offset, from + 2 * offset, bytes);
    std::memcpy(static_cast<std::byte*>(second.data) + offset, from + 2 * offset + bytes, bytes);
  }
}

void RefOps::slice_columns(const Tensor& x, int64_t begin, const Tensor& out) {
  const size_t size = dtype_size(x.dtype);
  const int64_t rows = num_rows(x);
  if (rows == 0) return;
  const auto from_row = static_cast<size_t>(x.num_elements() / rows) * size;
  const auto to_row = static_cast<size_t>(out.num_elements() / rows) * size;
  for (int64_t t = 0; t < rows; ++t)
    std::memcpy(static_cast<std::byte*>(out.data) + static_cast<size_t>(t) * to_row,
                static_cast<const std::byte*>(x.data) + static_cast<size_t>(t) * from_row +
                    static_cast<size_t>(begin) * size,
                to_row);
}

void RefOps::sigmoid_mul(const Tensor& x, const Tensor& gate) {
  const int64_t count = x.num_elements();
  if (count == 0) return;
  const int64_t per_gate = count / gate.num_elements();
  with_float_type(x.dtype, [&]<class T>(T) {
    for (int64_t i = 0; i < count; ++i) {
      const float g = T(sigmoid(gate.as<const T>()[i / per_gate]));
      x.as<T>()[i] = T(static_cast<float>(x.as<T>()[i]) * g);
    }
  });
}

void RefOps::silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out) {
  const int64_t count = gate.num_elements();
  with_float_type(gate.dtype, [&]<class T>(T) {
    for (int64_t i = 0; i < count; ++i) {
      const float g = gate.as<const T>()[i];
      const float activated = T(g * sigmoid(g));
      out.as<T>()[i] = T(activated * static_cast<float>(up.as<const T>()[i]));
    }
  });
}

void RefOps::rope(const RopeArgs& args) {
  if (args.x.num_elements() == 0) return;
  const int64_t num_tokens = args.x.shape[0];
  const int64_t num_heads = args.x.shape[1];
  const int64_t head_dim = args.x.shape[2];
  const int32_t half = args.rotary_dim / 2;
  with_float_type(args.x.dtype, [&]<class T>(T) {
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int32_t i = 0; i < half; ++i) {
        int axis = 0;
        if (i % 3 == 1 && i < 3 * args.mrope_section[1]) axis = 1;
        if (i % 3 == 2 && i < 3 * args.mrope_section[2]) axis = 2;
        const auto position = static_cast<float>(args.positions[axis * num_tokens + t]);
        const float angle = position * args.inv_freq[i];
        // Rounded to the activation dtype before use, as Hugging Face does.
        const float c = T(std::cos(angle) * args.attention_scaling);
        const float s = T(std::sin(angle) * args.attention_scaling);
        for (int64_t h = 0; h < num_heads; ++h) {
          T* head = args.x.as<T>() + (t * num_heads + h) * head_dim;
          const float low = head[i];
          const float high = head[i + half];
          head[i] = T(static_cast<float>(T(low * c)) - static_cast<float>(T(high * s)));
          head[i + half] = T(static_cast<float>(T(high * c)) + static_cast<float>(T(low * s)));
        }
      }
    }
  });
}

void RefOps::argmax(const Tensor& logits, const Tensor& ids) {
  for (int64_t r = 0; r < num_rows(logits); ++r) {
    const float* row = logits.as<const float>() + r * logits.shape[1];
    float largest = -std::numeric_limits<float>::infinity();
    int32_t best = -1;
    for (int64_t i = 0; i < logits.shape[1]; ++i)
      if (row[i] > largest) {
        largest = row[i];
        best = static_cast<int32_t>(i);
      }
    ids.as<int32_t>()[r] = best;
  }
}

}  // namespace nibble::ref
