// What the two examples share: a picture in a PPM file, the export's metadata, and the table that davit predict
// prints.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

struct Picture {
    int64_t height = 0, width = 0;
    std::vector<uint8_t> planes; // 3 x height x width: what an export with --preprocess takes
};

inline Picture read_ppm(const char *path) {
    std::ifstream file(path, std::ios::binary);
    Picture picture;
    std::string magic;
    int64_t most = 0;
    file >> magic >> picture.width >> picture.height >> most;
    const int64_t height = picture.height, width = picture.width;
    if (!file || magic != "P6" || most != 255 || width < 1 || height < 1 || width > 16384 || height > 16384)
        throw std::runtime_error("a binary PPM of 8 bits is needed, without comments");
    file.get();
    std::vector<uint8_t> rows(3 * width * height);
    if (!file.read(reinterpret_cast<char *>(rows.data()), rows.size()))
        throw std::runtime_error("the picture is cut off");
    picture.planes.resize(rows.size());
    for (int64_t at = 0; at < width * height; ++at)
        for (int64_t band = 0; band < 3; ++band)
            picture.planes[band * width * height + at] = rows[3 * at + band];
    return picture;
}

// The texts of a list in the metadata's JSON, such as "class_names": ["cat", "dog"].
inline std::vector<std::string> texts(const std::string &json, const std::string &key) {
    std::vector<std::string> found;
    size_t at = json.find("\"" + key + "\": [");
    if (at == std::string::npos)
        return found;
    for (at = json.find('[', at) + 1; at < json.size() && json[at] != ']'; ++at) {
        if (json[at] != '"')
            continue;
        std::string text;
        while (++at < json.size() && json[at] != '"') {
            if (json[at] == '\\')
                ++at;
            if (at < json.size())
                text += json[at];
        }
        found.push_back(text);
    }
    return found;
}

inline bool says(const std::string &about, const std::string &what) { return about.find(what) != std::string::npos; }

inline void require_fitting(const std::string &about) {
    if (!says(about, "\"task\": \"classification\"") || says(about, "\"thresholds\""))
        throw std::runtime_error("a classifier of one class a picture is needed, exported by davit");
    if (!says(about, "\"preprocess\": \"uint8\"") || !says(about, "\"layout\": \"NCHW\""))
        throw std::runtime_error("export the model with --preprocess, and without --layout NHWC");
}

// The five best classes of logits, as davit predict prints them; a bar has 20 columns.
inline void print_table(const char *name, const float *logits, int64_t classes, const std::string &about) {
    const auto names = texts(about, "class_names");
    const size_t at = about.find("\"temperature\": ");
    const double temperature = at == std::string::npos ? 1 : std::atof(about.c_str() + at + 15);
    std::vector<int64_t> order(classes);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto one, auto other) { return logits[one] > logits[other]; });
    double sum = 0;
    for (int64_t one = 0; one < classes; ++one)
        sum += std::exp((logits[one] - logits[order[0]]) / temperature);
    static const char *const eighths[] = {" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉", "█"};
    std::printf("%s\n", name);
    for (int64_t rank = 0; rank < std::min<int64_t>(5, classes); ++rank) {
        const int64_t one = order[rank];
        const double share = std::exp((logits[one] - logits[order[0]]) / temperature) / sum;
        std::string bar;
        for (int column = 0; column < 20; ++column)
            bar += eighths[std::clamp<long>(std::lround(share * 160) - 8 * column, 0, 8)];
        const std::string word = one < (int64_t)names.size() ? names[one] : "class " + std::to_string(one);
        std::printf("  %6.2f%%  %s  %s\n", 100 * share, bar.c_str(), word.c_str());
    }
}
