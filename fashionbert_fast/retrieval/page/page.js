"use strict";
const at = (id) => document.getElementById(id);
const TOP = 20;
let photo = null, asked = 0;

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text; // never as markup: titles come from anywhere
  return made;
}

function say(text, isError) {
  at("status").textContent = text;
  at("status").className = isError ? "error" : "";
}

function choose(file) {
  if (photo) URL.revokeObjectURL(at("preview").src);
  photo = file || null;
  at("chosen").hidden = !photo;
  at("photo").value = "";
  if (photo) {
    at("preview").src = URL.createObjectURL(photo);
    at("name").textContent = photo.name;
  } else at("preview").removeAttribute("src");
}

function card(hit) {
  const made = element("li"), frame = element("div", "photo"), words = element("div", "words"), fit = element("div", "fit");
  const image = element("img");
  image.alt = "";
  image.addEventListener("error", () => frame.replaceChildren(element("span", "", "photo not here")));
  image.src = hit.image;
  frame.append(image);
  const best = hit.probability === null ? ["similarity", hit.cosine.toFixed(3)] : ["match", (100 * hit.probability).toFixed(1) + "%"];
  fit.append(element("span", "", best[0]), element("b", "", best[1]));
  const kind = [hit.category, hit.subcategory].filter((name, i, all) => name && all.indexOf(name) === i).join(" / ");
  words.append(element("span", "title", hit.title), element("span", "kind", kind), fit);
  made.append(frame, words);
  made.title = hit.title; // where it is too long for the card
  return made;
}

async function search() {
  const text = at("text").value.trim(), number = ++asked;
  const query = new URLSearchParams({ top: TOP });
  if (text) query.set("text", text);
  if (at("category").value) query.set("category", at("category").value);
  if (at("rerank").checked) query.set("rerank", "1");
  say("Searching …");
  at("hits").className = "waiting";
  let found;
  try {
    const answer = await fetch("search?" + query, photo ? { method: "POST", body: photo } : {});
    found = await answer.json();
  } catch (error) {
    found = { error: "No answer: is fashionbert serve still running?" };
  }
  if (number !== asked) return; // a later search is under way
  at("hits").className = "";
  at("hits").replaceChildren(...(found.hits || []).map(card));
  if (found.error) say(found.error, true);
  else say(found.hits.length + (found.hits.length === 1 ? " product" : " products") + (photo ? (text ? " for the words and the photo" : " for the photo") : ""));
  if (!photo) {
    query.delete("top");
    history.replaceState(null, "", "?" + query);
  }
}

async function start() {
  const about = await (await fetch("about")).json();
  at("about").textContent = about.products.toLocaleString("en") + " products";
  for (const name of about.categories) {
    const option = element("option", "", name);
    option.value = name;
    at("category").append(option);
  }
  const given = new URLSearchParams(location.search);
  at("text").value = given.get("text") || "";
  at("category").value = given.get("category") || "";
  at("rerank").checked = given.get("rerank") === "1";
  if (at("text").value) search();
}

at("form").addEventListener("submit", (event) => { event.preventDefault(); search(); });
at("rerank").addEventListener("change", () => { if (at("hits").children.length) search(); });
at("category").addEventListener("change", () => { if (at("hits").children.length) search(); });
at("photo").addEventListener("change", () => { if (at("photo").files[0]) { choose(at("photo").files[0]); search(); } });
at("remove").addEventListener("click", () => { choose(null); at("text").focus(); });
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files[0]) { choose(event.dataTransfer.files[0]); search(); }
});
start();
