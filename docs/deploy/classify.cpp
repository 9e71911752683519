// Name what is in a picture, by an ONNX export of davit and ONNX Runtime alone.
//   davit export CHECKPOINT model.onnx --preprocess
//   c++ -std=c++17 classify.cpp -I $ONNXRUNTIME_DIR/include -L $ONNXRUNTIME_DIR/lib -lonnxruntime -o classify
//   ./classify model.onnx picture.ppm          (a binary PPM, P6, of 8 bits, cropped to the size that you want)
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

// The texts of a list in the metadata's JSON, such as "class_names": ["cat", "dog"].
static std::vector<std::string> texts(const std::string& json, const std::string& key) {
  std::vector<std::string> found;
  size_t at = json.find("\"" + key + "\": [");
  if (at == std::string::npos) return found;
  for (at = json.find('[', at) + 1; at < json.size() && json[at] != ']'; ++at) {
    if (json[at] != '"') continue;
    std::string text;
    while (++at < json.size() && json[at] != '"') {
      if (json[at] == '\\') ++at;
      if (at < json.size()) text += json[at];
    }
    found.push_back(text);
  }
  return found;
}

int main(int count, char** words) try {
  if (count != 3) throw std::runtime_error("usage: classify MODEL.onnx PICTURE.ppm");
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
  Ort::Session session(env, words[1], Ort::SessionOptions());
  Ort::AllocatorWithDefaultOptions allocator;
  auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated("davit", allocator);
  const std::string about = text ? text.get() : "";
  if (about.find("\"preprocess\": \"uint8\"") == std::string::npos)
    throw std::runtime_error("export the model with --preprocess");

  std::ifstream file(words[2], std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, most = 0;
  file >> magic >> width >> height >> most;
  if (!file || magic != "P6" || most != 255 || width < 1 || height < 1 || width > 16384 || height > 16384)
    throw std::runtime_error("a binary PPM of 8 bits is needed, without comments");
  file.get();
  std::vector<uint8_t> rows(3 * width * height), planes(rows.size());
  if (!file.read(reinterpret_cast<char*>(rows.data()), rows.size())) throw std::runtime_error("the picture is cut off");
  for (int64_t at = 0; at < width * height; ++at)
    for (int64_t band = 0; band < 3; ++band) planes[band * width * height + at] = rows[3 * at + band];

  const std::vector<int64_t> shape{1, 3, height, width};
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto input = Ort::Value::CreateTensor<uint8_t>(memory, planes.data(), planes.size(), shape.data(), shape.size());
  const char* inputs[] = {"images"};
  const char* outputs[] = {"logits"};
  auto found = session.Run(Ort::RunOptions(), inputs, &input, 1, outputs, 1);
  const float* logits = found[0].GetTensorData<float>();
  const auto classes = found[0].GetTensorTypeAndShapeInfo().GetShape()[1];
  const auto names = texts(about, "class_names");
  std::vector<int64_t> order(classes);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](auto one, auto other) { return logits[one] > logits[other]; });
  for (int64_t at = 0; at < std::min<int64_t>(5, classes); ++at)
    std::cout << logits[order[at]] << "  " << (order[at] < (int64_t)names.size() ? names[order[at]] : "?") << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
