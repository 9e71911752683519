// Name what is in a picture, by an ONNX export of davit and ONNX Runtime alone, whose release has headers.
//   davit export CHECKPOINT model.onnx --preprocess
//   c++ -std=c++17 classify_onnxruntime.cpp -o classify
//       -I $ONNXRUNTIME_DIR/include -L $ONNXRUNTIME_DIR/lib -lonnxruntime
//   ./classify model.onnx picture.ppm          (of 8 bits, cropped to the size that you want)
#include <onnxruntime_cxx_api.h>

#include "picture.h"

int main(int count, char **words) try {
    if (count != 3)
        throw std::runtime_error("usage: classify MODEL.onnx PICTURE.ppm");
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
    Ort::Session session(env, words[1], Ort::SessionOptions());
    Ort::AllocatorWithDefaultOptions allocator;
    const auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated("davit", allocator);
    const std::string about = text ? text.get() : "";
    require_fitting(about);

    Picture picture = read_ppm(words[2]);
    const std::vector<int64_t> shape{1, 3, picture.height, picture.width};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto input = Ort::Value::CreateTensor<uint8_t>(memory, picture.planes.data(), picture.planes.size(),
                                                         shape.data(), shape.size());
    const char *const inputs[] = {"images"};
    const char *const outputs[] = {"logits"};
    const auto found = session.Run(Ort::RunOptions(), inputs, &input, 1, outputs, 1);
    const auto classes = found[0].GetTensorTypeAndShapeInfo().GetShape()[1];
    print_table(words[2], found[0].GetTensorData<float>(), classes, about);
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
