// Name what is in a picture, by an OpenVINO export of davit and OpenVINO alone, whose wheel has headers and libraries.
//   davit export CHECKPOINT model.xml --preprocess
//   OPENVINO=$(python -c "import openvino; print(openvino.__path__[0])")
//   c++ -std=c++17 classify_openvino.cpp -o classify
//       -I $OPENVINO/include $OPENVINO/libs/libopenvino.so.* -Wl,-rpath,$OPENVINO/libs
//   ./classify model.xml picture.ppm           (of 8 bits, cropped to the size that you want)
#include <openvino/openvino.hpp>

#include "picture.h"

int main(int count, char **words) try {
    if (count != 3)
        throw std::runtime_error("usage: classify MODEL.xml PICTURE.ppm");
    ov::Core core;
    const auto model = core.read_model(words[1]); // and the weights in the .bin beside it
    const std::string about = model->has_rt_info("davit") ? model->get_rt_info<std::string>("davit") : "";
    require_fitting(about);

    Picture picture = read_ppm(words[2]);
    auto compiled = core.compile_model(
        model, "CPU", ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
        ov::hint::inference_precision(ov::element::f32)); // some processors would take bfloat16 unasked
    auto request = compiled.create_infer_request();
    const ov::Shape shape{1, 3, (size_t)picture.height, (size_t)picture.width};
    request.set_input_tensor(ov::Tensor(ov::element::u8, shape, picture.planes.data()));
    request.infer();
    const ov::Tensor logits = request.get_tensor("logits");
    print_table(words[2], logits.data<float>(), logits.get_shape()[1], about);
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
