// The strip of thumbnails below the photo.

import { $, icon, make } from "./panels.js";

/** The strip of thumbnails below the photo, which are fetched when they come into sight. */
export class Strip {
  constructor(photos, api, open) {
    this.buttons = photos.map(({ name }, index) => {
      const button = make("button", { title: name, "aria-label": name }, icon("photo"));
      button.addEventListener("click", () => open(index));
      return button;
    });
    const seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        seen.unobserve(target);
        const index = this.buttons.indexOf(target);
        api.thumbnail(photos[index].name).then((blob) => {
          target.querySelector("svg").replaceWith(
            make("img", { src: URL.createObjectURL(blob), alt: "" }),
          );
        }).catch(({ status }) => {
          // What is wrong with the photo is said when it is opened.
          if (status) target.dataset.damaged = "";
          else seen.observe(target);
        });
      }
    }, { root: $("strip"), rootMargin: "0px 600px" });
    for (const button of this.buttons) seen.observe(button);
    $("thumbnails").replaceChildren(...this.buttons.map((each) => make("li", {}, each)));
    $("strip").hidden = photos.length < 2;
    photos.forEach(({ name, objects }, index) => this.count(index, name, objects));
  }

  /** Show how many objects a photo has. */
  count(index, name, objects) {
    const button = this.buttons[index];
    button.querySelector(".count")?.remove();
    button.setAttribute("aria-label", objects ? `${name}, ${objects} objects` : name);
    if (objects) button.append(make("span", { className: "count", textContent: objects }));
  }

  choose(index) {
    for (const [other, button] of this.buttons.entries()) {
      if (other === index) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    this.buttons[index]?.scrollIntoView({ block: "nearest", inline: "center" });
  }
}
