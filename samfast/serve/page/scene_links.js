// A link from the page of photos to that of large images, if the server has some.

const token = sessionStorage.getItem("samfast.token");

try {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch("v1/scenes", { headers, cache: "no-store" });
  const { scenes } = response.ok ? await response.json() : { scenes: [] };
  if (scenes.length) {
    const link = document.createElement("a");
    link.id = "scene-link";
    link.href = "scene.html";
    link.textContent = scenes.length === 1 ? "1 large image" : `${scenes.length} large images`;
    link.title = "Images that are larger than a photo, shown in tiles";
    document.querySelector(".bar-end").prepend(link);
  }
} catch {
  // Without an answer there is no link; the page itself says that the server is lost.
}
