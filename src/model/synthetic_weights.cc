// A hash of (seed, name, place) picks from a table of quantiles.
#include "model/synthetic_weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <numbers>
#include <vector>

#include "model/architectures.h"

namespace nibble {
namespace {

constexpr int kTableBits = 12;
constexpr size_t kTableSize = size_t{1} << kTableBits;
constexpr size_t kValuesPerWord = 4;  // of a hash: 4 x 12 bits
constexpr size_t kGrain = size_t{1} << 16;

// The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): counter in, random word out.
inline uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
constexpr uint64_t kGamma = 0x9e3779b97f4a7c15u;

uint64_t stream_of(uint64_t seed, std::string_view name) {
  uint64_t hash = mix(seed + kGamma);
  for (const char c : name) hash = mix(hash + kGamma + static_cast<unsigned char>(c));
  return hash;
}

// Standard normal quantiles at the middles of kTableSize equal parts of (0, 1).
const std::array<double, kTableSize>& normal_quantiles() {
  static const std::array<double, kTableSize> table = [] {
    std::array<double, kTableSize> values{};
    for (size_t i = 0; i < kTableSize; ++i) {
      const double wanted = (static_cast<double>(i) + 0.5) / kTableSize;
      double low = -8;
      double high = 8;
      for (int step = 0; step < 60; ++step) {
        const double middle = (low + high) / 2;
        (0.5 * std::erfc(-middle / std::numbers::sqrt2) < wanted ? low : high) = middle;
      }
      values[i] = low;
    }
    return values;
  }();
  return table;
}

using Quantiles = std::array<float, kTableSize>;

Quantiles normal(double mean, double deviation) {
  Quantiles table;
  for (size_t i = 0; i < kTableSize; ++i)
    table[i] = static_cast<float>(mean + deviation * normal_quantiles()[i]);
  return table;
}

template <class Function>
Quantiles quantiles(const Function& of_uniform) {
  Quantiles table;
  for (size_t i = 0; i < kTableSize; ++i)
    table[i] = static_cast<float>(of_uniform((static_cast<double>(i) + 0.5) / kTableSize));
  return table;
}

Quantiles distribution(std::string_view name, const ModelSpec& spec, const Shape& shape) {
  // Decay parameters as Gated DeltaNet and Mamba initialise them: A in [1, 16), time steps
  // log-uniform in [0.001, 0.1).
  if (name.ends_with(".A_log")) return quantiles([](double u) { return std::log(1 + 15 * u); });
  if (name.ends_with(".dt_bias"))
    return quantiles([](double u) {
      const double step = std::exp(std::log(1e-3) + u * std::log(100));
      return std::log(std::expm1(step));
    });
  if (name.ends_with(".embed_tokens.weight")) return normal(0, 1);
  if (name.ends_with("linear_attn.norm.weight")) return normal(1, 0.05);
  if (name.ends_with("norm.weight")) return normal(1.0 - spec.norm_weight_offset, 0.05);
  return normal(0, 1 / std::sqrt(static_cast<double>(shape[-1])));
}

template <class T>
void fill_from(const Quantiles& table, uint64_t stream, T* out, size_t count, ThreadPool& pool) {
  std::array<T, kTableSize> rounded;
  for (size_t i = 0; i < kTableSize; ++i) rounded[i] = T(table[i]);
  pool.parallel_for((count + kValuesPerWord - 1) / kValuesPerWord, kGrain,
                    [&](size_t begin, size_t end) {
                      for (size_t word = begin; word < end; ++word) {
                        uint64_t random = mix(stream + word * kGamma);
                        const size_t first = word * kValuesPerWord;
                        const size_t last = std::min(first + kValuesPerWord, count);
                        for (size_t i = first; i < last; ++i, random >>= kTableBits)
                          out[i] = rounded[random % kTableSize];
                      }
                    });
}

void fill_from(const Quantiles& table, uint64_t stream, const Tensor& out, ThreadPool& pool) {
  const auto count = static_cast<size_t>(out.num_elements());
  switch (out.dtype) {
    case DType::kBF16: fill_from(table, stream, out.as<BFloat16>(), count, pool); return;
    case DType::kF16: fill_from(table, stream, out.as<Float16>(), count, pool); return;
    case DType::kF32: fill_from(table, stream, out.as<float>(), count, pool); return;
    default: NB_CHECK(false, "dtype %d", static_cast<int>(out.dtype));
  }
}

void fill_bits(uint64_t stream, const Tensor& out, ThreadPool& pool) {
  auto* const bytes = static_cast<std::byte*>(out.data);
  const size_t size = out.num_bytes();
  pool.parallel_for((size + 7) / 8, kGrain, [&](size_t begin, size_t end) {
    for (size_t word = begin; word < end; ++word) {
      const uint64_t random = mix(stream + word * kGamma);
      std::memcpy(bytes + word * 8, &random, std::min<size_t>(8, size - word * 8));
    }
  });
}

// Quantized codes are uniform over all 2^bits values, so a scale of
//   weight deviation / (deviation of the codes)
// with some spread gives the matrix the deviation of a dense one.
Quantiles scales(const LinearWeight& weight) {
  const double levels = std::ldexp(1.0, weight.format.num_bits);
  const double code_deviation = std::sqrt((levels * levels - 1) / 12);
  const double scale = 1 / (std::sqrt(static_cast<double>(weight.in_features)) * code_deviation);
  return quantiles([scale](double u) { return scale * (0.8 + 0.4 * u); });
}

// Stored codes are value + 2^(bits-1), so their middle lies between -1 and 0: half of the groups
// get each.
void fill_zero_points(uint64_t stream, std::span<int8_t> out) {
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<int8_t>(-static_cast<int>(mix(stream + i * kGamma) & 1));
}

std::string part(std::string_view name, const char* suffix) {
  return std::string(name) + suffix;
}

// Asks WeightShapes what a checkpoint holds and gives each answer to `make`, which returns where
// the tensor of that name lies.
class EveryTensor final : public WeightSource {
 public:
  using Make = std::function<Status(const std::string& name, const Tensor& shape)>;
  using MakeQuantized = std::function<Status(const std::string& name, const LinearWeight& shapes)>;
  EveryTensor(const WeightShapes& shapes, Make make, MakeQuantized make_quantized)
      : shapes_(shapes), make_(std::move(make)), make_quantized_(std::move(make_quantized)) {}

  bool has(std::string_view) const override { return false; }
  Result<Tensor> tensor(std::string_view name, const Shape& expected) const override {
    NB_TRY(const Tensor shape, shapes_.tensor(name, expected));
    NB_TRY_STATUS(make_(std::string(name), shape));
    return shape;
  }
  Result<LinearWeight> linear(std::string_view name, int64_t out, int64_t in) const override {
    NB_TRY(const LinearWeight shapes, shapes_.linear(name, out, in));
    NB_TRY_STATUS(shapes.quantized() ? make_quantized_(std::string(name), shapes)
                                     : make_(part(name, ".weight"), shapes.dense));
    return shapes;
  }

 private:
  const WeightShapes& shapes_;
  Make make_;
  MakeQuantized make_quantized_;
};

Status visit(const Json& config, const EveryTensor::Make& make,
             const EveryTensor::MakeQuantized& make_quantized) {
  NB_TRY(const ModelSpec spec, parse_model_config(config));
  NB_TRY(const std::optional<QuantizationConfig> quantization, parse_quantization_config(config));
  NB_TRY(const WeightShapes shapes, WeightShapes::make(spec, quantization));
  return look_up_weights(EveryTensor(shapes, make, make_quantized), spec);
}

// The files' form of zero points: packed along rows.
Shape packed_zero_points(const LinearWeight& weight) {
  return {packed_width(weight.out_features, weight.format.num_bits),
          weight.format.num_groups(weight.in_features)};
}

}  // namespace

void fill_random(std::string_view name, const ModelSpec& spec, uint64_t seed, const Tensor& out,
                 ThreadPool& pool) {
  if (out.dtype == DType::kI32) return fill_bits(stream_of(seed, name), out, pool);
  fill_from(distribution(name, spec, out.shape), stream_of(seed, name), out, pool);
}

Result<size_t> synthetic_bytes(const Json& config) {
  size_t bytes = 0;
  NB_TRY_STATUS(visit(
      config,
      [&](const std::string&, const Tensor& shape) -> Status {
        bytes += shape.num_bytes();
        return {};
      },
      [&](const std::string&, const LinearWeight& shapes) -> Status {
        bytes += shapes.packed.num_bytes() + shapes.scale.num_bytes() + 2 * sizeof(int64_t);
        if (!shapes.format.symmetric)
          bytes += Tensor{nullptr, DType::kI32, packed_zero_points(shapes)}.num_bytes();
        return {};
      }));
  return bytes;
}

Status write_synthetic_checkpoint(const Json& config, uint64_t seed, ThreadPool& pool,
                                  CheckpointWriter& writer) {
  NB_TRY(const ModelSpec spec, parse_model_config(config));
  std::vector<std::byte> buffer;  // of the largest tensor
  const auto in_buffer = [&](const Tensor& shape) {
    if (buffer.size() < shape.num_bytes()) buffer.resize(shape.num_bytes());
    return Tensor{buffer.data(), shape.dtype, shape.shape};
  };
  const auto make = [&](const std::string& name, const Tensor& shape) {
    const Tensor tensor = in_buffer(shape);
    fill_random(name, spec, seed, tensor, pool);
    return writer.add(name, tensor);
  };
  const auto make_quantized = [&](const std::string& name, const LinearWeight& shapes) -> Status {
    NB_CHECK(shapes.in_features * shapes.format.num_bits % 32 == 0, "%s: a partial word",
             name.c_str());
    NB_TRY_STATUS(make(part(name, ".weight_packed"), shapes.packed));
    const std::string scale_name = part(name, ".weight_scale");
    const Tensor scale = in_buffer(shapes.scale);
    fill_from(scales(shapes), stream_of(seed, scale_name), scale, pool);
    NB_TRY_STATUS(writer.add(scale_name, scale));
    if (!shapes.format.symmetric) {
      const std::string zero_name = part(name, ".weight_zero_point");
      const Shape shape = packed_zero_points(shapes);
      std::vector<int8_t> zeros(static_cast<size_t>(shapes.zero_point.num_elements()));
      std::vector<int32_t> packed(static_cast<size_t>(shape.num_elements()));
      fill_zero_points(stream_of(seed, zero_name), zeros);
      pack_columns(zeros, shapes.out_features, shape[1], shapes.format.num_bits, packed);
      NB_TRY_STATUS(writer.add(zero_name, {packed.data(), DType::kI32, shape}));
    }
    int64_t dims[] = {shapes.out_features, shapes.in_features};
    return writer.add(part(name, ".weight_shape"), {dims, DType::kI64, {2}});
  };
  NB_TRY_STATUS(visit(config, make, make_quantized));
  return writer.add_file("config.json", dump_json_pretty(config));
}

struct SyntheticWeights::State {
  State(ModelSpec model, WeightShapes weight_shapes, uint64_t random_seed, bool share,
        ThreadPool& threads)
      : spec(std::move(model)),
        shapes(std::move(weight_shapes)),
        seed(random_seed),
        shared(share),
        pool(&threads) {}

  ModelSpec spec;
  WeightShapes shapes;
  uint64_t seed;
  bool shared;
  ThreadPool* pool;
  struct Buffer {
    std::unique_ptr<std::byte[]> bytes;
    size_t size = 0;
  };
  // By tensor name, or, shared, by what decides the distribution. A buffer that has become too
  // small is kept: views of it are out.
  std::map<std::string, Buffer, std::less<>> buffers;
  std::vector<Buffer> outgrown;

  // `fill` gets the tensor when its bytes are new.
  template <class Fill>
  Tensor find(const std::string& key, const Tensor& shape, const Fill& fill) {
    Buffer& buffer = buffers[key];
    if (buffer.size >= shape.num_bytes()) return {buffer.bytes.get(), shape.dtype, shape.shape};
    if (buffer.bytes) outgrown.push_back(std::move(buffer));
    buffer = {std::make_unique_for_overwrite<std::byte[]>(shape.num_bytes()), shape.num_bytes()};
    const Tensor made{buffer.bytes.get(), shape.dtype, shape.shape};
    fill(made);
    return made;
  }

  // Matrices of one width share; whatever is small has its own.
  std::string key(std::string_view name, const Tensor& shape, const char* kind) const {
    if (!shared || shape.shape.rank() != 2 || name.ends_with("embed_tokens.weight"))
      return std::string(name);
    return std::string(kind) + std::to_string(shape.shape[1]);
  }

  Tensor make(std::string_view name, const Tensor& shape, const char* kind) {
    return find(key(name, shape, kind), shape,
                [&](const Tensor& out) { fill_random(name, spec, seed, out, *pool); });
  }
};

SyntheticWeights::SyntheticWeights(std::unique_ptr<State> state) : state_(std::move(state)) {}
SyntheticWeights::SyntheticWeights(SyntheticWeights&&) noexcept = default;
SyntheticWeights::~SyntheticWeights() = default;

Result<SyntheticWeights> SyntheticWeights::make(
    const ModelSpec& spec, const std::optional<QuantizationConfig>& quantization, uint64_t seed,
    bool shared, ThreadPool& pool) {
  NB_TRY(WeightShapes shapes, WeightShapes::make(spec, quantization));
  return SyntheticWeights(std::make_unique<State>(spec, std::move(shapes), seed, shared, pool));
}

bool SyntheticWeights::has(std::string_view name) const {
  return state_->shapes.has(name);
}

Result<Tensor> SyntheticWeights::tensor(std::string_view name, const Shape& expected) const {
  NB_TRY(const Tensor shape, state_->shapes.tensor(name, expected));
  return state_->make(name, shape, "tensor ");
}

Result<LinearWeight> SyntheticWeights::linear(std::string_view name, int64_t out_features,
                                              int64_t in_features) const {
  NB_TRY(LinearWeight weight, state_->shapes.linear(name, out_features, in_features));
  if (!weight.quantized()) {
    weight.dense = state_->make(part(name, ".weight"), weight.dense, "dense ");
    return weight;
  }
  weight.packed = state_->make(part(name, ".weight_packed"), weight.packed, "packed ");
  const std::string scale_name = part(name, ".weight_scale");
  weight.scale = state_->find(
      state_->key(scale_name, weight.scale, "scale "), weight.scale, [&](const Tensor& out) {
        fill_from(scales(weight), stream_of(state_->seed, scale_name), out, *state_->pool);
      });
  if (weight.zero_point.shape.rank() > 0) {
    const std::string zero_name = part(name, ".weight_zero_point");
    weight.zero_point = state_->find(
        state_->key(zero_name, weight.zero_point, "zero point "), weight.zero_point,
        [&](const Tensor& out) {
          fill_zero_points(stream_of(state_->seed, zero_name), {out.as<int8_t>(), out.num_bytes()});
        });
  }
  return weight;
}

}  // namespace nibble
