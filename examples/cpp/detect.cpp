// Runs a model that tools/export_model.py exported to TorchScript, without Python:
//     detect MODEL.ts OP_LIBRARY IMAGE.ppm
// One line per detection: class, score, x1, y1, x2, y2 in pixels. docs/export.md builds it.

#include <ATen/DynamicLibrary.h>
#include <torch/script.h>

#include <fstream>
#include <iostream>
#include <regex>

// A binary PPM file as float32 [3, height, width], RGB, 0 to 255.
at::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, largest = 0;
  file >> magic >> width >> height >> largest;
  TORCH_CHECK(magic == "P6" && largest == 255, path, " is not a PPM file (P6) of 8 bits");
  const auto pixels = at::empty({height, width, 3}, at::kByte);
  file.ignore(1).read(static_cast<char*>(pixels.data_ptr()), pixels.numel());
  TORCH_CHECK(file, path, " ends before its last pixel");
  return pixels.permute({2, 0, 1}).to(at::kFloat).contiguous();
}

// The strings of a flat JSON list.
std::vector<std::string> strings_of(const std::string& json) {
  const std::regex quoted(R"json("((?:[^"\\]|\\.)*)")json");
  const std::regex escaped(R"(\\(.))");
  std::vector<std::string> strings(
      std::sregex_token_iterator(json.begin(), json.end(), quoted, 1), {});
  for (auto& string : strings) {
    string = std::regex_replace(string, escaped, "$1");
  }
  return strings;
}

void print_detections(const std::string& model_path, const std::string& image_path) {
  torch::jit::ExtraFilesMap carried{{"config.yaml", ""}, {"classes.json", ""}};
  auto model = torch::jit::load(model_path, at::kCPU, carried);
  auto image = read_ppm(image_path);
  if (carried["config.yaml"].find("\n  FORMAT: BGR") != std::string::npos) {
    image = image.flip(0);
  }
  const c10::InferenceMode inference;
  const auto found = model.forward({image}).toTupleRef().elements().vec();
  const auto boxes = found[0].toTensor(), classes = found[1].toTensor();
  const auto scores = found[found.size() - 2].toTensor();  // behind masks, if there are any
  const auto names = strings_of(carried["classes.json"]);
  for (int64_t i = 0; i < scores.size(0); ++i) {
    const auto number = static_cast<size_t>(classes[i].item<int64_t>());
    std::cout << (number < names.size() ? names[number] : std::to_string(number));
    std::cout << ' ' << scores[i].item<float>();
    for (int64_t side = 0; side < 4; ++side) {
      std::cout << ' ' << boxes[i][side].item<float>();
    }
    std::cout << '\n';
  }
}

int main(int argc, char** argv) try {
  TORCH_CHECK(argc == 4, "usage: detect MODEL.ts OP_LIBRARY IMAGE.ppm");
  const at::DynamicLibrary ops(argv[2]);
  print_detections(argv[1], argv[3]);
} catch (const c10::Error& error) {
  std::cerr << "error: " << error.what_without_backtrace() << '\n';
  return 1;
}
